"""Sample texts, one per class of what goes wrong when two tokenizers meet."""

import unicodedata


# Text in which every character has one spelling: every tokenizer that can spell bytes must keep all of it.
CLEAN = {
    "english": "The quick brown fox doesn't jump over 13 lazy dogs; it sleeps.",
    "code with tabs": "def f(x):\n\tif x > 0:\n\t\treturn x ** 2  # squared\n\n    return None\n",
    "python indentation": "class A:\n    def b(self):\n        for i in range(10):\n            print(f'{i:>8}')\n",
    "html": '<div class="row"><p>Hi &amp; bye</p><br/><table><tr><td>1</td></tr></table></div>',
    "latex": r"\frac{\partial f}{\partial x} = \sum_{i=1}^{n} \{a_{i}^{2}\} \le \mathbb{R}",
    "digits": "3.14159265358979 + 1234567890 = 0x1F600, 10000000, 2024-01-31",
    "chinese": "机器学习模型在自然语言处理中非常有用。",
    "rare cjk": "𠮷野家の龘靐齉と𪚥を食べる",
    "japanese": "これは日本語のテキストです。カタカナもあります。",
    "korean": "안녕하세요, 오늘 날씨가 좋네요.",
    "emoji": "👨‍👩‍👧‍👦 loves 🏳️‍🌈 and 🇩🇪 👍🏽! 🤷🏾‍♀️",
    "hindi and arabic": "नमस्ते दुनिया مرحبا بالعالم क्षत्रिय",
    "thai and georgian": "ภาษาไทยไม่มีช่องว่าง ქართული ენა",
    "right-to-left marks": "\u200fשלום\u200e world \u202babc\u202c",
    "cyrillic and greek": "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω τὴν ψυχοφθόρα",
    "leading spaces": "   three spaces, then a word",
    "runs of spaces": "a  b   c    d     e" + " " * 33 + "f" + " " * 120 + "g",
    "runs of equal signs": "=" * 100 + "\n" + "-" * 70 + "\n" + "#" * 40,
    "carriage returns, tabs, no-break spaces": "a\r\nb\r\n\r\nc\td\u00a0e\u202ff\u3000g",
    "line separators": "a\u2028b\u2029c\u0085d\x0b\x0ce",
    "zero-width characters": "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
    "byte order mark": "\ufeffstart",
    "real replacement characters": "caf\ufffd \ufffd\ufffd end\ufffd",
    "control characters": "a\x00b\x01c\x1b[31md\x7f",
    "long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2,
    "full-width and ligatures": "ＡＢＣ１２３ ﬁnd ﬂow ½ ² ™ ㎏",
    "trailing newlines": "The end.\n\n\n",
    "only newlines": "\n\n\n\n",
    "only spaces": "       ",
    "one letter": "a",
    "unassigned and private use": "\ue000\U000f0000\u0378\U0010fffd",
    "literal lower one eighth block": "a▁b ▁c▁▁d ▁▁▁ ▁",
    "literal byte tokens": "<0x41><0x0A> <0xF0><0x9F> 0x41 <0x>",
}

# Text with a second, canonically equivalent spelling: a tokenizer that normalizes to NFC writes it with other bytes.
DECOMPOSED = {
    "nfd latin": unicodedata.normalize("NFD", " résumé Ångström naïve, déjà vu"),
    "nfd hangul": unicodedata.normalize("NFD", "안녕하세요 한국어 텍스트"),
    "nfc singletons": "10 \u2126 at 5 \u212b and 3 \u212a; \u1f71 \u0340 \uf900",
    "marks out of order": "a\u0315\u0300\u05ae\u0062 q\u0307\u0323 \u0f73",
    "nfd vietnamese": unicodedata.normalize("NFD", "Tiếng Việt có nhiều dấu thanh điệu"),
    "composition exclusions": "\u0958\u0959 \ufb2a\ufb2b \u2adc",
    "a mark first": "\u0301abc",
    "a letter that decomposes into marks": "one two x\u05ae\u0f73 three \u0f75\u0f81 four",
}

# Text that spells tokens which mean something: it must stay text.
LITERAL_SPECIALS = {
    "chat markup": "Use <|im_start|>assistant\nto begin and <|im_end|> to stop.",
    "end of sentence": "</s> ends it, <s> begins it, <unk> and <pad> are others.</s>",
    "gemma markup": "<start_of_turn>model\nHi<end_of_turn>\n<eos><bos>",
    "llama markup": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|end_of_text|>",
    "deepseek markup": "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>there<｜end▁of▁sentence｜>",
    "mistral markup": "[INST] Hi [/INST] there [TOOL_CALLS]",
    "harmony markup": "<|start|>assistant<|channel|>final<|message|>Hi<|return|><|endoftext|><|call|>",
    "reasoning markup": "<think>\nhm\n</think>\n\n<tool_call>{}</tool_call>",
    "bert markup": "[CLS] a [MASK] b [SEP]",
}

ALL = CLEAN | DECOMPOSED | LITERAL_SPECIALS
