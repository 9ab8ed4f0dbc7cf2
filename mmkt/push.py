"""A checkpoint with its card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from mmkt import checkpoint

# Not predictions.parquet: its labels and ids are the data's, which may not be ours to publish.
FILES = [
    "README.md",
    "config.json",
    "vocabularies.json",
    "model.safetensors",
    "delta.json",
    "assets/**",
    "evaluation-*/metrics.jsonl",
]


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a checkpoint; the repository is made if need be.

    Args:
        folder: such as ``RUN/best``.
        name: the repository, ``owner/name`` or ``name``.
        private: make it private.

    Returns:
        The repository's address.

    Raises:
        CheckpointError: the folder is no whole checkpoint with a card.
        ValueError: offline, not logged in, a name that cannot be, a public repository where a private one was asked for, or
            the Hub refuses.
    """
    for file in ("config.json", "vocabularies.json"):
        checkpoint.read_json(folder / file)
    checkpoint.read_tensors(folder / "model.safetensors")
    if not (folder / "README.md").is_file():
        raise checkpoint.CheckpointError(f"{folder} has no card (README.md), which mmkt train writes at its end: train --resume")
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(name)
    if constants.HF_HUB_OFFLINE:
        raise ValueError("offline mode is on (HF_HUB_OFFLINE is set), so nothing can be pushed: unset it")
    if not get_token():
        raise ValueError("you are not logged in to the Hub: type hf auth login, or set HF_TOKEN to a token that may write")
    api = HfApi()
    try:
        made = api.create_repo(name, private=private or None, exist_ok=True)
        public = private and not api.model_info(made.repo_id).private
        if not public:
            api.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=FILES, commit_message="mmkt push")
    except Exception as error:  # whatever the network or the Hub says, the reader needs to know that nothing else went wrong
        raise ValueError(f"the Hub did not take {name}: {error}") from error
    if public:
        raise ValueError(f"{made.repo_id} is there and public: make it private on the Hub, or give another name")
    return str(made)
