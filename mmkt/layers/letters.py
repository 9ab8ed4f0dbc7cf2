"""Letters that are typed, or read, in place of others."""

from __future__ import annotations

import functools

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
LATIN = {  # digits and signs as in TextBugger (Li et al., 2019), then Cyrillic letters of the same shape
    "a": "@а",
    "b": "6",
    "c": "с",
    "e": "3е",
    "g": "9",
    "i": "1і",
    "j": "ј",
    "l": "1I",
    "o": "0о",
    "p": "р",
    "q": "9",
    "s": "5ѕ",
    "t": "7",
    "u": "v",
    "v": "u",
    "x": "х",
    "y": "у",
    "z": "2",
}
HAN = (  # groups of characters that are commonly confused
    "己已巳 未末 土士 人入八 大太犬 日曰目 干千于 天夫无 午牛 今令 王玉主 白百自 木本术 问间闻 情请清晴睛精 辨辩辫 密蜜 "
    "戊戌戍 手毛 田由甲申 几九 刀力 广厂 拔拨 幻幼 折拆析 侯候 免兔 鸟乌 徒徙 蓝篮 洒酒 坐座 往住 待侍 贝见 买卖 外处 们门 休体 "
    "何向 各名 古右石 左在 又叉 万方 了子 币市 车东 师帅 季李 很狠 跟根 版板 话活 快块 喝渴 抢枪 炮跑饱抱泡 怕拍 攻功 决诀 "
    "历厉 代伐 仪议 沮阻 输愉偷 哪那 吗妈 吧把 呢泥 地他她也 像象 读续 经轻 晚挽 早旱 明朋 没设 便使更 员圆 园圆 困因团 国围 "
    "图圈 爪瓜 孤狐 狼狠浪 郎朗 即既 部陪 陈阵 险检捡验脸 具真直 且旦 位泣 拉垃 业亚 开并 形刑型 列例烈裂 点店站战 线钱浅 银根 "
    "眼限 退腿 进近 远运 还坏 环怀杯 林材村 付附 府俯"
)


def beside(letter: str) -> str:
    """A small letter's neighbours on the keyboard (QWERTY); "" for what is not on it."""
    for number, row in enumerate(ROWS):
        place = row.find(letter)
        if place >= 0:
            near = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
            return near + "".join(ROWS[other][place : place + 1] for other in (number - 1, number + 1) if 0 <= other < len(ROWS))
    return ""


def alike(letter: str) -> str:
    """What looks like a letter or a Chinese character, of commonly confused ones; "" where none is known."""
    return LATIN.get(letter.lower(), "") or "".join(
        dict.fromkeys(c for group in HAN.split() for c in group if letter in group and c != letter)
    )


def homophones(letter: str) -> str:
    """Chinese characters in common use that sound the same, tone included, the usual reading of each.

    Raises:
        ValueError: pypinyin is not installed.
    """
    by_sound, by_letter = _sounds()
    return "".join(c for c in by_sound.get(by_letter.get(letter, ""), "") if c != letter)


@functools.cache
def _sounds() -> tuple[dict[str, str], dict[str, str]]:
    """Sound → the characters of the first level of GB 2312 that have it, and the other way round."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        words = "homophones of Chinese characters need the extra: pip install 'mmkt[chinese]', or leave homophone out of ways"
        raise ValueError(words) from None
    common = "".join(bytes([high, low]).decode("gb2312", "ignore") for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    by_letter = {c: pinyin(c, style=Style.TONE3, heteronym=False)[0][0] for c in common}
    by_sound: dict[str, str] = {}
    for c, sound in by_letter.items():
        by_sound[sound] = by_sound.get(sound, "") + c
    return by_sound, by_letter
