"""Captions of all kinds: ordinary English, what a tokenizer may stumble over, and mixes of both."""

import random

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ORDINARY_TEXT = """
    a an the two three of on in at with and man woman child dog cat horse bicycle motorcycle photo
    riding standing sitting holding wearing red blue green yellow white black old young street beach
    kitchen table plate pizza sandwich umbrella skateboard airplane traffic light fire hydrant
    isn't it's they're we've I'm he'll she'd Rock 'n' don't U.S.A. e-mail 4K 1920x1080 #sunset @home
    www.example.com/index.html?q=1 $19.99 50% C++ (c) "quoted" -- ... !!! snake_case CamelCase
    <start_of_text> <end_of_text> x<end_of_text>y !<start_of_text> <START_OF_TEXT> <b>bold</b> & "
    pneumonoultramicroscopicsilicovolcanoconiosis donaudampfschifffahrtsgesellschaft"""
ODD_TEXT = """
    &amp; &lt;b&gt; &amp;amp; &quot; &#39; &#x1F600; &eacute; &nbsp; &#0; &#xD800; &copy &notit;
    &AMP; AT&T R&B &&amp;& caf\u00e9 cafe\u0301 na\u00efve Stra\u00dfe \u0130stanbul \u0131
    \u039f\u0394\u039f\u03a3 \u03a3 \u1fb3\u0345 \u03b1\u0345\u03b2 '\u0345s \u01c5 \ufb03 \ufb05
    \uff26\uff35\uff2c\uff2c '\u017f it'\u017fo 1'\u017f !'\u017f 's'\u017f \u017fo
    <\u017ftart_of_text> x<\u017ftart_of_text>'\u017fy <end_of_text>'\u017f \u2019s we\u2019ll
    \u201cquote\u201d \u2013 \u2014 \u2026 \u00c3\u00a9t\u00c3\u00a9 \u00e2\u20ac\u2122s
    \u00c3\u00a2\u00e2\u201a\u00ac\u00e2\u201e\u00a2 &#64261; &#837; x&#x345;y
    \u00bd \u2167 \u2460 \u00b2 \u0663 \u0967 \u4e2d\u6587 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4
    \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u05e2\u05d1\u05e8\u05d9\u05ea \u0627\u0644\u0639
    \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \U0001f600 \U0001f468\u200d\U0001f469
    \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f 1\ufe0f\u20e3 \U0001fae9 \ufffd \ufeff
    \ua7cb \U00010d40 \U000105c0x x\U0002ebf0 \U0010ffff \ue000 \u0378"""
ORDINARY, ODD = ORDINARY_TEXT.split(), ODD_TEXT.split()
GAPS = [" "] * 12 + ["  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", ""]
CONTROLS = ["\0", "\x07", "\x1b[31m", "\x1c", "\x1f", "\x7f", "\x85", "\x93", "\ud800", "\udc00"]
BLOCKS = [0x80, 0x100, 0x250, 0x300, 0x370, 0x400, 0x590, 0x600, 0x900, 0xE00, 0x1100, 0x1E00]
BLOCKS += [0x1F00, 0x2000, 0x2100, 0x2460, 0x2600, 0x3040, 0x4E00, 0xAC00, 0xFB00, 0xFF00, 0x1D400]
BLOCKS += [0x1F300]


def make_captions(scale: float = 1.0) -> list[str]:
    """About 20,000 · scale, the same ones each time."""
    rng = random.Random(0)
    captions = ["", " ", "\n", "\0", "&nbsp;", "\x85hello", "\x1chi\x1f", "a\x1cb", "\u3000a\u00a0"]
    captions += [*ORDINARY, *ODD, "!" * 200, "x" * 10_000, "word " * 2_000, "\u4e2d" * 3_000]

    def mix(words: list[str], n: int) -> str:
        return "".join(rng.choice(words) + rng.choice(GAPS) for _ in range(n))

    for _ in range(int(8_000 * scale)):
        captions.append(" ".join(rng.choices(ORDINARY, k=rng.randint(1, 16))).capitalize())
    # Letters that make no words, so the merges rather than whole words.
    for _ in range(int(3_000 * scale)):
        captions.append(
            " ".join("".join(rng.choices(LETTERS, k=rng.randint(1, 12))) for _ in range(9))
        )
    for _ in range(int(3_000 * scale)):
        captions.append(mix(ORDINARY + ODD, rng.randint(1, 14)))
    for _ in range(int(3_000 * scale)):
        captions.append(mix(ORDINARY + ODD + CONTROLS, rng.randint(1, 8)))
    for _ in range(int(3_000 * scale)):
        first = rng.choice(BLOCKS)
        captions.append("".join(chr(first + rng.randrange(128)) for _ in range(rng.randint(1, 24))))
    for _ in range(int(1_000 * scale)):
        chars = (rng.randrange(0x20000) for _ in range(rng.randint(1, 24)))
        captions.append("".join(map(chr, chars)))
    for _ in range(int(300 * scale)):
        captions.append(mix(ORDINARY + ODD, rng.randint(40, 120)))
    return captions
