//! The words that the sample rows are made of. Nobody real: given and family names are drawn apart, e-mail domains are
//! the reserved example.*, and phone numbers come from ranges that are kept for fiction.

/// A word as it is shown, and in ASCII for addresses and file names.
pub(super) type Word = (&'static str, &'static str);

pub(super) const GIVEN_LATIN: &[Word] = &[
    ("Amelia", "amelia"),
    ("Björn", "bjorn"),
    ("Chidi", "chidi"),
    ("Daniela", "daniela"),
    ("Elif", "elif"),
    ("Fatou", "fatou"),
    ("Giulia", "giulia"),
    ("Hugo", "hugo"),
    ("Ingrid", "ingrid"),
    ("José", "jose"),
    ("Kwame", "kwame"),
    ("Łukasz", "lukasz"),
    ("Mei", "mei"),
    ("Nikhil", "nikhil"),
    ("Oksana", "oksana"),
    ("Priya", "priya"),
    ("Ronan", "ronan"),
    ("Søren", "soren"),
    ("Thảo", "thao"),
    ("Zoë", "zoe"),
];

pub(super) const FAMILY_LATIN: &[Word] = &[
    ("Adeyemi", "adeyemi"),
    ("Bianchi", "bianchi"),
    ("Castro", "castro"),
    ("D'Souza", "dsouza"),
    ("Eriksen", "eriksen"),
    ("Fernández", "fernandez"),
    ("Gupta", "gupta"),
    ("Haddad", "haddad"),
    ("Iyer", "iyer"),
    ("Jensen", "jensen"),
    ("Kowalska", "kowalska"),
    ("Lindqvist", "lindqvist"),
    ("Müller", "mueller"),
    ("Nguyễn", "nguyen"),
    ("O'Connor", "oconnor"),
    ("Petrova", "petrova"),
    ("Rahman", "rahman"),
    ("Şahin", "sahin"),
    ("Tan", "tan"),
    ("van der Berg", "vanderberg"),
];

pub(super) const GIVEN_ARABIC: &[Word] = &[
    ("أحمد", "ahmad"),
    ("بشرى", "bushra"),
    ("تميم", "tamim"),
    ("جميلة", "jamila"),
    ("حسن", "hassan"),
    ("خديجة", "khadija"),
    ("رانيا", "rania"),
    ("زياد", "ziyad"),
    ("سلمى", "salma"),
    ("شادي", "shadi"),
    ("عمر", "omar"),
    ("فاطمة", "fatima"),
    ("كريم", "karim"),
    ("ليلى", "layla"),
    ("منى", "mona"),
    ("يوسف", "yusuf"),
];

pub(super) const FAMILY_ARABIC: &[Word] = &[
    ("البغدادي", "albaghdadi"),
    ("الحسيني", "alhusseini"),
    ("الخطيب", "alkhatib"),
    ("الدمشقي", "aldimashqi"),
    ("الزهراني", "alzahrani"),
    ("السعدي", "alsaadi"),
    ("الشامي", "alshami"),
    ("العلي", "alali"),
    ("القاسم", "alqasim"),
    ("المنصوري", "almansouri"),
    ("النجار", "alnajjar"),
    ("حداد", "haddad"),
    ("درويش", "darwish"),
    ("عبد الله", "abdullah"),
];

pub(super) const COMPANY_HEADS: &[Word] = &[
    ("Atlas", "atlas"),
    ("Blue Heron", "blueheron"),
    ("Cedar", "cedar"),
    ("Delta", "delta"),
    ("Évora", "evora"),
    ("Falcon", "falcon"),
    ("Golden Gate", "goldengate"),
    ("Harbour", "harbour"),
    ("Indigo", "indigo"),
    ("Juniper", "juniper"),
    ("النور", "alnoor"),
    ("الواحة", "alwaha"),
    ("الصقر", "alsaqr"),
    ("البحر", "albahr"),
];

pub(super) const COMPANY_TAILS_LATIN: &[&str] = &["Clinics", "Foods", "Freight", "Labs", "Motors", "Optics", "Travel"];
pub(super) const COMPANY_TAILS_ARABIC: &[&str] = &["للتجارة", "للسفر", "للأغذية", "للتقنية", "للعقارات"];

/// Code, name, dial code.
pub(super) const COUNTRIES: &[(&str, &str, &str)] = &[
    ("AE", "United Arab Emirates", "+971"),
    ("DE", "Germany", "+49"),
    ("EG", "Egypt", "+20"),
    ("GB", "United Kingdom", "+44"),
    ("IN", "India", "+91"),
    ("JO", "Jordan", "+962"),
    ("SE", "Sweden", "+46"),
    ("US", "United States", "+1"),
];

pub(super) const EMAIL_DOMAINS: &[&str] = &["example.com", "example.org", "example.net"];
pub(super) const AREA_CODES: &[u32] = &[202, 303, 312, 404, 415, 503, 617, 702, 808, 919];
pub(super) const STREETS: &[&str] = &["Harbour Road", "Mill Lane", "Rue des Fleurs", "شارع الزيتون", "شارع البحر"];
pub(super) const CITIES: &[&str] = &["Springfield", "Northport", "Sainte-Claire", "المدينة الجديدة", "الميناء"];
pub(super) const TAGS: &[&str] = &["vip", "newsletter", "trial", "partner", "عميل مميز"];
pub(super) const SOURCES: &[&str] = &["web form", "referral", "trade fair", "whatsapp", "import"];
pub(super) const PROVIDERS: &[&str] = &["calendar", "mailbox", "storefront"];
pub(super) const CHANNELS: &[&str] = &["whatsapp", "web", "email"];
pub(super) const ITEMS: &[&str] =
    &["Monthly licence", "Onboarding day", "Message pack, 1,000", "Training (remote)", "ترخيص شهري", "دعم فني"];

/// `{name}`, `{phone}`, `{email}` and `{order}` are filled in. Line breaks, tabs and backslashes are there on purpose.
pub(super) const FROM_CONTACT_LATIN: &[&str] = &[
    "Hello, this is {name}. Could you call me back on {phone}?",
    "Where is my order {order}? I have been waiting for a week.",
    "Please send the invoice to {email}, thanks!",
    "Perfect, that solved it 🙏",
    "My new address:\n12 Harbour Road\n\tflat B\\C",
    "Can I move the appointment to Thursday?",
];

pub(super) const FROM_CONTACT_ARABIC: &[&str] = &[
    "مرحباً، أنا {name}. هل يمكنكم الاتصال بي على {phone}؟",
    "أين طلبي رقم {order}؟ أنتظر منذ أسبوع.",
    "الرجاء إرسال الفاتورة إلى {email} وشكراً",
    "ممتاز، تم حل المشكلة 🌹",
    "هل يمكن تأجيل الموعد إلى يوم الخميس؟",
];

pub(super) const FROM_AGENT_LATIN: &[&str] = &[
    "Hi {name}, thank you for your message. We are looking into it.",
    "Order {order} left our warehouse today.",
    "We sent it to {email}. Is there anything else?",
];

pub(super) const FROM_AGENT_ARABIC: &[&str] = &[
    "أهلاً {name}، شكراً على رسالتك. نحن نتابع الأمر.",
    "تم شحن الطلب {order} اليوم.",
    "أرسلناها إلى {email}. هل من شيء آخر؟",
];
