"""Texts that tokenizers are trained on and compared on."""

# Article 1 of the Universal Declaration of Human Rights (United Nations, free to use).
LANGUAGES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with "
          "reason and conscience and should act towards one another in a spirit of brotherhood.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués "
          "de raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
          "fraternité.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
          "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
          "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati "
          "di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di "
          "fratellanza.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de "
          "razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni "
          "obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Jsou nadáni "
          "rozumem a svědomím a mají spolu jednat v duchu bratrství.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana "
          "sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan. Heille on "
          "annettu järki ja omatunto, ja heidän on toimittava toisiaan kohtaan veljeyden hengessä.",
    "hu": "Minden emberi lény szabadon születik és egyenlő méltósága és joga van. Az emberek, "
          "ésszel és lelkiismerettel bírván, egymással szemben testvéri szellemben kell hogy "
          "viseltessenek.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền. Mọi con "
          "người đều được tạo hoá ban cho lý trí và lương tâm và cần phải đối xử với nhau trong "
          "tình bằng hữu.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
          "разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах. Вони наділені "
          "розумом і совістю і повинні діяти у відношенні один до одного в дусі братерства.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. "
          "Είναι προικισμένοι με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους "
          "με πνεύμα αδελφοσύνης.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن "
          "يعامل بعضهم بعضًا بروح الإخاء.",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, לפיכך "
          "חובה עליהם לנהוג איש ברעהו ברוח של אחווה.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند. همه دارای "
          "عقل و وجدان هستند و باید نسبت به یکدیگر با روح برادری رفتار کنند.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
          "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। তাঁদের বিবেক এবং বুদ্ধি আছে।",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் "
          "சமமானவர்கள்.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ "
          "ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით.",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ ու հավասար իրենց արժանապատվությամբ ու իրավունքներով:",
    "am": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを"
          "授けられており、互いに同胞の精神をもって行動しなければならない。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 "
          "부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
}

EMOJI = [
    "😀😃😄", "👍🏽 ok 👍🏿", "👨‍👩‍👧‍👦 family", "🏳️‍🌈🏴‍☠️", "🇩🇪🇫🇷🇯🇵", "1️⃣2️⃣#️⃣", "❤️‍🔥", "🧑🏻‍🤝‍🧑🏿",
    "☺️ vs ☺", "a👨‍💻b", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
]

ODD = [
    "", " ", "  ", "\n", "\r\n", "\t\t", "a", " a", "a ", "  a  ", "\n\n\n a\n \n", "a\r\n\r\nb\rc",
    " \n \n  x", "x \u00a0 y", "a\u2003\u2003b", "\u3000全角", "a\u2028b\u2029c", "\u0085x\u0085\u0085",
    "\u180ex\u180e \u180e", "\u200b\u200bzero", "\ufeffbom", "soft\u00adhyphen", "\u200dzwj\u200c",
    "I'm you're he's they'll we'd I've can't", "I'M YOU'RE HE'S THEY'LL WE'D I'VE CAN'T",
    "it'\u017f 'Ll 'rE 'VE'ſ", "O'Neill's 'tis ''s 's's", "\u2019s don\u2019t", "'", "''", "' s",
    "0 1 12 123 1234 12345 123456789012345", "3.14159 1,000,000 1e-10 0x7fff", "x1y22z333",
    "٠١٢٣٤٥٦٧٨٩ ०१२३ ²³¹ ½⅓ Ⅷ ⅷ ① ⑳ 〇一二三 ৳৴", "१२३४", "１２３ＡＢＣ",
    "hello,world;foo:bar!baz?", "...---===!!!???", "a_b__c ___ _x_", "snake_case camelCase PascalCase "
    "HTTPServer iOS", "<html><body class=\"x\">&amp;</body></html>", "def f(x):\n    return x**2\n\n",
    "\tif (a && b) {\r\n\t\treturn;\r\n\t}\r\n", "https://example.org/a/b?c=d&e=f#g", "C:\\dir\\file.txt",
    "\x00", "\x00\x01\x02\x1b[0m\x7f", "a\x00b\x00\x00c", "\x1c\x1d\x1e\x1f x", "\u0080\u009f\u00a0",
    "e\u0301 é \u1e9b\u0323 ﬁ ﬃ Å Å \uac00 \u1100\u1161\u11a8", "\u0344\u0958\u2126\u212b\uf900",
    "Z\u0351\u036b\u0343a\u0315\u0316l\u0317g\u0318o\u0319", "\u0301", "\u0301\u0301 \u0301",
    "नि नी क्षत्रिय", "กำ ก็ำ", "ẞ ß ſ İ ı ǅ ŉ", "ΑΣ Σας ς", "\ud7a3\ue000\uf8ff\ufffd\uffff",
    "\U00010000\U0001f9ff\U0002a6d6\U000e0041\U0010ffff", "\U00031350\U0002ebf0\u1c89\u08c8 new letters",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> \n<|endoftext|><|endoftext|>", "<|endoftext|",
    "<|im_start|>user\nhi<|im_end|>\n", "<|begin_of_text|>x<|eot_id|>", "<tool_call>{}</tool_call>",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "a" * 1000, "ab" * 700, " " * 1000, "\n" * 500, " \n" * 300, "é" * 500, "中" * 400, "😀" * 200,
    "x" * 300 + " " + "y" * 300, "1" * 500, "!" * 400, "aaab" * 100 + "\u0301" * 100, "'s" * 200,
    "abcdefghijklmnopqrstuvwxyz" * 20, "Donaudampfschifffahrtsgesellschaftskapitän",
]


def all_texts():
    return list(LANGUAGES.values()) + EMOJI + ODD + [" ".join(LANGUAGES.values())]
