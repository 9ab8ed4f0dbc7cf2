"""Encoders, one file each: tensors of one modality in, ``Encoded`` out."""
