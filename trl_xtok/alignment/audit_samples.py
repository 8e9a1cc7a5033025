"""Short texts of many kinds, on which two tokenizers are compared.

They are no corpus: each shows how tokenizers meet in one class of text.
"""

import unicodedata


PROSE = {
    "English": "Yesterday's rain hadn't stopped by noon, so the two of us stayed in, made tea, and read aloud to each "
    "other until the lights went out. It wasn't a wasted day; quite the opposite.",
    "German": "Am nächsten Morgen überquerten wir die Brücke, kauften frische Brötchen und fragten den Busfahrer, ob "
    "die Straßenverkehrsordnung das Überholen hier wirklich erlaubt.",
    "Spanish": "¿Cuántos años tenía la abuela cuando aprendió a nadar? Nadie lo recuerda, pero todos juran que cruzó "
    "el río en menos de diez minutos.",
    "Russian": "Осенью в нашем городе рано темнеет, и дети возвращаются из школы при свете фонарей, шурша опавшими "
    "листьями.",
    "Arabic": "كان الطريق إلى القرية طويلًا، لكن المسافرين وصلوا قبل غروب الشمس وجلسوا تحت شجرة التين.",
    "Hindi": "बारिश के बाद बच्चों ने काग़ज़ की नावें बनाईं और उन्हें गली के छोटे से नाले में तैरा दिया।",
    "Thai": "เช้าวันอาทิตย์เราเดินไปตลาดริมน้ำเพื่อซื้อผลไม้และกาแฟร้อนหนึ่งแก้ว",
    "Chinese": "图书馆在山脚下，周末人不多。她总是选靠窗的位置，读完一章，再抬头看看外面的云。",
    "Japanese": "駅前の古い喫茶店では、毎朝同じ時間にコーヒーの香りがして、常連さんが新聞を広げています。",
    "Korean": "할머니는 마당에 심은 감나무를 가리키며, 올해는 열매가 유난히 많이 열렸다고 말씀하셨다.",
}

OTHER = {
    "Python": "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "C with tabs": '#include <stdio.h>\n\nint main(void)\n{\n\tfor (int i = 0; i < 8; ++i) {\n\t\tprintf("%d\\n", '
    "i * i);\n\t}\n\treturn 0;\n}\n",
    "numbers": "In 2024 it cost 1,299.99, or 17 % more; 365 * 24 = 8760, 2^31 - 1 = 2147483647, pi = 3.14159265358979,"
    " from 08:30 to 17:45 on 2025-11-03.",
    "emoji": "Great job! 🎉🎉 Two thumbs up 👍🏽👍 from the whole family 👨‍👩‍👧 in 🇨🇭, see you 🔜 ☀️.",
    "HTML": '<ul class="menu">\n  <li><a href="/a?x=1&amp;y=2">First</a></li>\n  <li><b>Second</b><br/></li>\n</ul>\n',
    "Markdown": "## Steps\n\n1. Install it:\n   ```shell\n   pip install thing\n   ```\n2. Run `thing --help`.\n\n"
    "| name | value |\n|---|---|\n| **a** | 1 |\n",
    "JSON": '{"id": 42, "tags": ["x", "y"], "nested": {"ok": true, "note": null, "path": "C:\\\\tmp"}}',
    "LaTeX": r"$$\int_{0}^{\infty} e^{-x^{2}}\,dx = \frac{\sqrt{\pi}}{2}, \qquad \sum_{k=1}^{n} k = "
    r"\tfrac{n(n+1)}{2}$$",
    "white space": "a  b    c\n\n\n    d\t\te  \n \n\tf        g\r\nh",
    "compatibility characters": "The ﬁrst ﬂoor is ½ full: 5 m², ＡＢＣ１２３, №7, ™, … and “quotes”.",
    "separate accents": unicodedata.normalize("NFD", "Một ngày đẹp trời, chị Hằng kể chuyện cổ tích ở Huế."),
    "chat markup": "Write <|im_end|> or </s> to stop, [INST] to begin, and <think> to think.",
}

SAMPLES = PROSE | OTHER
