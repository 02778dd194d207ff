//! Makes the sample rows, one tenant at a time: seed and shape in, COPY text out.
//!
//! Ids run on from tenant to tenant, and every tenant has its own streams of random numbers. Nothing is read from the
//! clock or the machine: ages count back from [`NEWEST_SECS`]. Each table's function makes what the next ones refer to.

use sqlx::PgConnection;

use super::copy::CopyRows;
use super::rng::SplitMix64;
use super::words::{self, Word};
use super::{Shape, attachment_content};

/// 2026-06-01T00:00:00Z: no sample row is younger.
const NEWEST_SECS: i64 = 1_780_272_000;
const DAY_SECS: u64 = 86_400;
const AGE_DAYS_MAX: u64 = 3 * 365;

/// The last id given out, by table, over all tenants.
#[derive(Default)]
struct LastIds {
    user: i64,
    company: i64,
    contact: i64,
    lead: i64,
    conversation: i64,
    message: i64,
    invoice: i64,
    attachment: i64,
    integration: i64,
    email: i64,
}

fn take(last: &mut i64) -> i64 {
    *last += 1;
    *last
}

/// A contact as later tables need it.
struct Person {
    id: i64,
    given: Word,
    family: Word,
    email: String,
    phone: String,
    arabic: bool,
    created: i64,
}

struct Conversation {
    id: i64,
    /// Index into `Tenant::contacts`.
    contact: usize,
    created: i64,
}

struct Message {
    id: i64,
    sent: i64,
    file_stem: &'static str,
}

/// One row of crm.attachments before its hash, which the server computes from `content`.
#[derive(Default)]
struct Attachments {
    ids: Vec<i64>,
    message_ids: Vec<i64>,
    object_keys: Vec<String>,
    contents: Vec<Vec<u8>>,
    file_names: Vec<String>,
    created_secs: Vec<i64>,
}

struct Tenant {
    id: i64,
    /// Percentage of its contacts who write in Arabic script.
    arabic_percent: u64,
    users: Vec<i64>,
    companies: Vec<i64>,
    contacts: Vec<Person>,
    conversations: Vec<Conversation>,
    messages: Vec<Message>,
}

pub(super) struct Generator {
    shape: Shape,
    last: LastIds,
}

impl Generator {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, last: LastIds::default() }
    }

    /// The reference table and all workspaces, whose ids are 1 to `shape.tenants`.
    pub(super) async fn send_shared(&self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut countries = CopyRows::new("countries", "code, name, dial_code");
        for (code, name, dial_code) in words::COUNTRIES {
            countries.text(code).text(name).text(dial_code).end_row();
        }
        countries.send(db).await?;
        let mut workspaces = CopyRows::new("workspaces", "id, name, created_at");
        for id in 1..=i64::from(self.shape.tenants) {
            let mut rng = self.stream(id, 0);
            let name = format!("{} {id}", company_name(&mut rng).0);
            workspaces.value(id).text(&name).time(NEWEST_SECS - (AGE_DAYS_MAX * DAY_SECS) as i64).end_row();
        }
        workspaces.send(db).await
    }

    /// All rows of the tenant `id`. Tenants are sent in the order of their ids, each once.
    pub(super) async fn send_tenant(&mut self, id: i64, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut tenant = Tenant {
            id,
            arabic_percent: if id % 3 == 2 { 80 } else { 15 },
            users: Vec::new(),
            companies: Vec::new(),
            contacts: Vec::new(),
            conversations: Vec::new(),
            messages: Vec::new(),
        };
        self.users(&mut tenant).send(db).await?;
        self.companies(&mut tenant).send(db).await?;
        self.contacts(&mut tenant).send(db).await?;
        self.contact_tags(&tenant).send(db).await?;
        self.leads(&tenant).send(db).await?;
        self.conversations(&mut tenant).send(db).await?;
        self.messages(&mut tenant).send(db).await?;
        let (invoices, lines) = self.invoices(&tenant);
        invoices.send(db).await?;
        lines.send(db).await?;
        send_attachments(id, self.attachments(&tenant), db).await?;
        self.integrations(&tenant).send(db).await?;
        self.webhook_subscriptions(&tenant).send(db).await?;
        self.email_history(&tenant).send(db).await
    }

    fn stream(&self, tenant: i64, table: u64) -> SplitMix64 {
        SplitMix64::stream(self.shape.seed, tenant.unsigned_abs(), table)
    }

    /// One in `divisor` of the contacts, but at least `least`.
    fn share(&self, divisor: u32, least: u32) -> u32 {
        (self.shape.rows / divisor).max(least)
    }

    fn users(&mut self, tenant: &mut Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 1);
        let mut rows =
            CopyRows::new("users", "id, workspace_id, full_name, email, phone, role, last_seen_at, created_at");
        for i in 0..self.share(50, 3) {
            let id = take(&mut self.last.user);
            let (given, family, _) = full_name(&mut rng, tenant.arabic_percent);
            let role = match i {
                0 => "owner",
                1 => "admin",
                _ => "agent",
            };
            let created = age(&mut rng, 30);
            rows.value(id).value(tenant.id).value(format_args!("{} {}", given.0, family.0));
            rows.value(format_args!("{}.{}.u{id}@example.com", given.1, family.1)).text(&phone(&mut rng)).text(role);
            let seen = rng.chance(90).then(|| between(&mut rng, created));
            rows.optional_time(seen).time(created).end_row();
            tenant.users.push(id);
        }
        rows
    }

    fn companies(&mut self, tenant: &mut Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 2);
        let mut rows =
            CopyRows::new("companies", "id, workspace_id, parent_id, name, domain, country_code, created_at");
        for _ in 0..self.share(5, 2) {
            let id = take(&mut self.last.company);
            let parent = (!tenant.companies.is_empty() && rng.chance(20)).then(|| rng.pick(&tenant.companies));
            let (name, ascii) = company_name(&mut rng);
            rows.value(id).value(tenant.id).optional(parent).text(&name);
            rows.value(format_args!("{ascii}-{id}.{}", rng.pick(words::EMAIL_DOMAINS)));
            rows.text(rng.pick(words::COUNTRIES).0).time(age(&mut rng, 0)).end_row();
            tenant.companies.push(id);
        }
        rows
    }

    fn contacts(&mut self, tenant: &mut Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 3);
        let mut rows = CopyRows::new(
            "contacts",
            "id, workspace_id, company_id, owner_id, first_name, last_name, email, phone, \"WhatsAppId\", profile, \
             locale, created_at, updated_at, deleted_at",
        );
        for _ in 0..self.shape.rows {
            let id = take(&mut self.last.contact);
            let (given, family, arabic) = full_name(&mut rng, tenant.arabic_percent);
            let email = format!("{}.{}.{id}@{}", given.1, family.1, rng.pick(words::EMAIL_DOMAINS));
            let phone = phone(&mut rng);
            let created = age(&mut rng, 0);
            let updated = between(&mut rng, created);
            let company = rng.chance(70).then(|| rng.pick(&tenant.companies));
            let owner = rng.chance(90).then(|| rng.pick(&tenant.users));
            rows.value(id).value(tenant.id).optional(company).optional(owner).text(given.0).text(family.0);
            rows.optional(rng.chance(95).then_some(&email)).text(&phone);
            let whatsapp: String = phone.chars().filter(char::is_ascii_digit).collect();
            rows.optional(rng.chance(60).then_some(whatsapp)).value(profile(&mut rng));
            rows.text(if arabic { "ar" } else { "en" }).time(created).time(updated);
            rows.optional_time(rng.chance(5).then_some(updated)).end_row();
            tenant.contacts.push(Person { id, given, family, email, phone, arabic, created });
        }
        rows
    }

    fn contact_tags(&self, tenant: &Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 4);
        let mut rows = CopyRows::new("contact_tags", "workspace_id, contact_id, tag");
        for contact in &tenant.contacts {
            for tag in words::TAGS {
                if rng.chance(15) {
                    rows.value(tenant.id).value(contact.id).text(tag).end_row();
                }
            }
        }
        rows
    }

    fn leads(&mut self, tenant: &Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 5);
        let mut rows =
            CopyRows::new("leads", "id, workspace_id, contact_id, status, source, value_cents, created_at, closed_at");
        for _ in 0..self.share(4, 1) {
            let contact = rng.pick_ref(&tenant.contacts);
            let status = rng.pick(&["new", "qualified", "won", "lost"]);
            let created = between(&mut rng, contact.created);
            rows.value(take(&mut self.last.lead)).value(tenant.id).value(contact.id).text(status);
            rows.text(rng.pick(words::SOURCES)).value(rng.below(50_000) * 100).time(created);
            let closed = matches!(status, "won" | "lost").then(|| between(&mut rng, created));
            rows.optional_time(closed).end_row();
        }
        rows
    }

    fn conversations(&mut self, tenant: &mut Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 6);
        let mut rows = CopyRows::new("conversations", "id, workspace_id, contact_id, channel, created_at, ended_at");
        for _ in 0..self.share(2, 2) {
            let contact = rng.below(tenant.contacts.len() as u64) as usize;
            let id = take(&mut self.last.conversation);
            let created = between(&mut rng, tenant.contacts[contact].created);
            rows.value(id).value(tenant.id).value(tenant.contacts[contact].id).text(rng.pick(words::CHANNELS));
            let ended = rng.chance(60).then(|| between(&mut rng, created));
            rows.time(created).optional_time(ended).end_row();
            tenant.conversations.push(Conversation { id, contact, created });
        }
        rows
    }

    fn messages(&mut self, tenant: &mut Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 7);
        let mut rows = CopyRows::new("messages", "workspace_id, id, conversation_id, author_id, body, status, sent_at");
        for conversation in &tenant.conversations {
            let contact = &tenant.contacts[conversation.contact];
            let mut sent = conversation.created;
            for nth in 0..=rng.below(8) {
                let id = take(&mut self.last.message);
                let author = (nth > 0 && rng.chance(50)).then(|| rng.pick(&tenant.users));
                rows.value(tenant.id).value(id).value(conversation.id).optional(author);
                rows.text(&body(&mut rng, contact, author.is_some()));
                rows.text(match author {
                    None => "received",
                    Some(_) => rng.pick(&["sent", "delivered", "delivered", "read", "read", "failed"]),
                });
                rows.time(sent).end_row();
                tenant.messages.push(Message { id, sent, file_stem: contact.family.1 });
                sent = (sent + 30 + rng.below(3_600) as i64).min(NEWEST_SECS);
            }
        }
        rows
    }

    fn invoices(&mut self, tenant: &Tenant) -> (CopyRows, CopyRows) {
        let mut rng = self.stream(tenant.id, 8);
        let mut invoices =
            CopyRows::new("invoices", "id, workspace_id, company_id, number, currency, issued_on, due_on, paid_at");
        let mut lines = CopyRows::new("invoice_lines", "invoice_id, position, description, quantity, unit_cents");
        for nth in 1..=self.share(10, 1) {
            let id = take(&mut self.last.invoice);
            let issued = age(&mut rng, 0);
            invoices.value(id).value(tenant.id).value(rng.pick(&tenant.companies));
            invoices.value(format_args!("INV-{nth:06}")).text(rng.pick(&["USD", "EUR", "AED"]));
            invoices.time(issued).time(issued + 30 * DAY_SECS as i64);
            let paid = rng.chance(80).then(|| between(&mut rng, issued));
            invoices.optional_time(paid).end_row();
            for position in 1..=1 + rng.below(4) {
                lines.value(id).value(position).text(rng.pick(words::ITEMS)).value(1 + rng.below(12));
                lines.value(500 * (1 + rng.below(400))).end_row();
            }
        }
        (invoices, lines)
    }

    fn attachments(&mut self, tenant: &Tenant) -> Attachments {
        let mut rng = self.stream(tenant.id, 9);
        let mut made = Attachments::default();
        for _ in 0..self.share(10, 1) {
            let id = take(&mut self.last.attachment);
            let message = rng.pick_ref(&tenant.messages);
            let object_key = format!("workspaces/{}/attachments/{id:08}-{:016x}", tenant.id, rng.next());
            made.ids.push(id);
            made.message_ids.push(message.id);
            made.contents.push(attachment_content(&object_key));
            made.object_keys.push(object_key);
            made.file_names.push(format!("{} {id}.txt", message.file_stem));
            made.created_secs.push(message.sent);
        }
        made
    }

    fn integrations(&mut self, tenant: &Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 10);
        let mut rows = CopyRows::new(
            "integrations",
            "id, workspace_id, provider, access_token, refresh_token, expires_at, created_at",
        );
        for provider in words::PROVIDERS {
            let created = age(&mut rng, 0);
            rows.value(take(&mut self.last.integration)).value(tenant.id).text(provider);
            rows.value(format_args!("sample-access-{:016x}{:016x}", rng.next(), rng.next()));
            let refresh = format!("sample-refresh-{:016x}", rng.next());
            let expires = rng.chance(70).then_some(NEWEST_SECS + 90 * DAY_SECS as i64);
            rows.optional(rng.chance(70).then_some(refresh)).optional_time(expires).time(created).end_row();
        }
        rows
    }

    fn webhook_subscriptions(&self, tenant: &Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 11);
        let mut rows =
            CopyRows::new("webhook_subscriptions", "id, workspace_id, created_by, url, event_types, created_at");
        for types in ["{}", "{message.received,conversation.ended}"] {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&rng.next().to_be_bytes());
            bytes[8..].copy_from_slice(&rng.next().to_be_bytes());
            rows.value(uuid::Builder::from_random_bytes(bytes).into_uuid()).value(tenant.id);
            rows.value(rng.pick(&tenant.users));
            rows.value(format_args!("https://hooks.example.net/{}/{}", tenant.id, rng.below(1_000_000)));
            rows.text(types).time(age(&mut rng, 0)).end_row();
        }
        rows
    }

    fn email_history(&mut self, tenant: &Tenant) -> CopyRows {
        let mut rng = self.stream(tenant.id, 12);
        let mut rows = CopyRows::new(
            "email_history",
            "id, workspace_id, contact_id, to_address, subject, body, sent_at, bounced_at",
        );
        for _ in 0..self.shape.rows {
            let contact = rng.pick_ref(&tenant.contacts);
            let known = rng.chance(95);
            let sent = between(&mut rng, contact.created);
            rows.value(take(&mut self.last.email)).value(tenant.id).optional(known.then_some(contact.id));
            rows.text(&contact.email);
            rows.value(format_args!("{}, your request {}", contact.given.0, order_number(&mut rng)));
            rows.text(&body(&mut rng, contact, true)).time(sent);
            rows.optional_time(rng.chance(3).then_some(sent + 60)).end_row();
        }
        rows
    }
}

/// By array parameters and not by COPY, since the server computes the hash.
async fn send_attachments(tenant: i64, rows: Attachments, db: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO crm.attachments (id, workspace_id, message_id, object_key, content_sha256, content_type,
                                      size_bytes, file_name, created_at)
         SELECT a.id, $1, a.message_id, a.object_key, sha256(a.content), 'text/plain', octet_length(a.content),
                a.file_name, to_timestamp(a.created_secs)
         FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::bytea[], $6::text[], $7::bigint[])
           AS a (id, message_id, object_key, content, file_name, created_secs)",
    )
    .bind(tenant)
    .bind(rows.ids)
    .bind(rows.message_ids)
    .bind(rows.object_keys)
    .bind(rows.contents)
    .bind(rows.file_names)
    .bind(rows.created_secs)
    .execute(db)
    .await
    .map(|_| ())
}

/// A moment at least `days_min` and at most `AGE_DAYS_MAX` days before the newest row.
fn age(rng: &mut SplitMix64, days_min: u64) -> i64 {
    let secs = days_min * DAY_SECS + rng.below((AGE_DAYS_MAX - days_min) * DAY_SECS);
    NEWEST_SECS - secs as i64
}

/// A moment from `since` to the newest row.
fn between(rng: &mut SplitMix64, since: i64) -> i64 {
    since + rng.below((NEWEST_SECS - since).max(0).unsigned_abs()) as i64
}

fn full_name(rng: &mut SplitMix64, arabic_percent: u64) -> (Word, Word, bool) {
    if rng.chance(arabic_percent) {
        (rng.pick(words::GIVEN_ARABIC), rng.pick(words::FAMILY_ARABIC), true)
    } else {
        (rng.pick(words::GIVEN_LATIN), rng.pick(words::FAMILY_LATIN), false)
    }
}

fn company_name(rng: &mut SplitMix64) -> (String, &'static str) {
    let (head, ascii) = rng.pick(words::COMPANY_HEADS);
    let tails =
        if head.is_ascii() || head == "Évora" { words::COMPANY_TAILS_LATIN } else { words::COMPANY_TAILS_ARABIC };
    (format!("{head} {}", rng.pick(tails)), ascii)
}

/// From ranges kept for fiction: +1 … 555-0100 to 0199 and +44 7700 900000 to 900999; written as people write them.
fn phone(rng: &mut SplitMix64) -> String {
    let area = rng.pick(words::AREA_CODES);
    match rng.below(3) {
        0 => format!("+1 {area} 555-01{:02}", rng.below(100)),
        1 => format!("+1{area}55501{:02}", rng.below(100)),
        _ => format!("+44 7700 900{:03}", rng.below(1_000)),
    }
}

fn order_number(rng: &mut SplitMix64) -> String {
    format!("ORD-{:07}", rng.below(10_000_000))
}

/// JSON with PII inside, nested; empty for one contact in three.
fn profile(rng: &mut SplitMix64) -> serde_json::Value {
    if rng.chance(33) {
        return serde_json::json!({});
    }
    let (year, month, day) = (1950 + rng.below(55), 1 + rng.below(12), 1 + rng.below(28));
    let street = format!("{} {}", 1 + rng.below(200), rng.pick(words::STREETS));
    serde_json::json!({
        "birthday": format!("{year}-{month:02}-{day:02}"),
        "address": { "street": street, "city": rng.pick(words::CITIES) },
        "phones": [phone(rng)],
        "score": rng.below(100),
    })
}

fn body(rng: &mut SplitMix64, contact: &Person, from_agent: bool) -> String {
    let template = match (from_agent, contact.arabic) {
        (false, false) => rng.pick(words::FROM_CONTACT_LATIN),
        (false, true) => rng.pick(words::FROM_CONTACT_ARABIC),
        (true, false) => rng.pick(words::FROM_AGENT_LATIN),
        (true, true) => rng.pick(words::FROM_AGENT_ARABIC),
    };
    template
        .replace("{name}", &format!("{} {}", contact.given.0, contact.family.0))
        .replace("{phone}", &contact.phone)
        .replace("{email}", &contact.email)
        .replace("{order}", &order_number(rng))
}
