//! What the web app does with its database: one transaction a request, the tenant set in it, one business function.
//!
//! It sets only the app's own setting and calls only the app's own functions; that these enqueue with Reeve is the
//! schema's affair. It does not choose the tenant: the app's session does, and passes it in.

use std::fmt;

use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use super::{APP_CONTEXT_SETTING, CrmError};

/// The states of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageStatus {
    Received,
    Queued,
    Sent,
    Delivered,
    Read,
    Failed,
}

impl MessageStatus {
    /// As the enum crm.message_status has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Failed => "failed",
        }
    }
}

/// What to change of a contact; `None` leaves a field as it is.
#[derive(Clone, Copy, Default)]
pub struct ContactChange<'a> {
    pub first_name: Option<&'a str>,
    pub last_name: Option<&'a str>,
    pub email: Option<&'a str>,
    pub phone: Option<&'a str>,
}

impl fmt::Debug for ContactChange<'_> {
    /// Which fields, never the personal data in them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContactChange")
            .field("first_name", &self.first_name.is_some())
            .field("last_name", &self.last_name.is_some())
            .field("email", &self.email.is_some())
            .field("phone", &self.phone.is_some())
            .finish()
    }
}

/// The web app: a pool whose role is `crm_app`.
#[derive(Debug, Clone)]
pub struct AppClient {
    pool: PgPool,
}

impl AppClient {
    /// `pool` must log in as [`super::APP_ROLE`]: as a superuser, row-level security would not hold.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Begins a request of this tenant's. Dropped without [`TenantTx::commit`], it leaves nothing.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn in_tenant(&self, tenant: &str) -> Result<TenantTx, CrmError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("SELECT set_config($1, $2, true)").bind(APP_CONTEXT_SETTING).bind(tenant).execute(&mut *tx).await?;
        Ok(TenantTx { tx })
    }

    /// Makes a workspace and registers it with Reeve. Returns its id as Reeve's tenant id. `region` `None` takes the
    /// installation's default.
    ///
    /// # Errors
    /// When the name is empty or longer than 200 characters, or the database fails.
    pub async fn create_workspace(&self, name: &str, region: Option<&str>) -> Result<String, CrmError> {
        Ok(sqlx::query_scalar("SELECT crm.create_workspace($1, $2)::text")
            .bind(name)
            .bind(region)
            .fetch_one(&self.pool)
            .await?)
    }

    /// [`TenantTx::receive_message`] in a transaction of its own.
    ///
    /// # Errors
    /// As there.
    pub async fn receive_message(&self, tenant: &str, conversation: i64, body: &str) -> Result<i64, CrmError> {
        let mut request = self.in_tenant(tenant).await?;
        let message = request.receive_message(conversation, body).await?;
        request.commit().await?;
        Ok(message)
    }

    /// [`TenantTx::message_status`] in a transaction of its own.
    ///
    /// # Errors
    /// As there.
    pub async fn message_status(&self, tenant: &str, message: i64, status: MessageStatus) -> Result<bool, CrmError> {
        let mut request = self.in_tenant(tenant).await?;
        let changed = request.message_status(message, status).await?;
        request.commit().await?;
        Ok(changed)
    }

    /// [`TenantTx::end_conversation`] in a transaction of its own.
    ///
    /// # Errors
    /// As there.
    pub async fn end_conversation(&self, tenant: &str, conversation: i64) -> Result<bool, CrmError> {
        let mut request = self.in_tenant(tenant).await?;
        let ended = request.end_conversation(conversation).await?;
        request.commit().await?;
        Ok(ended)
    }

    /// [`TenantTx::update_contact`] in a transaction of its own.
    ///
    /// # Errors
    /// As there.
    pub async fn update_contact(
        &self,
        tenant: &str,
        contact: i64,
        change: ContactChange<'_>,
    ) -> Result<bool, CrmError> {
        let mut request = self.in_tenant(tenant).await?;
        let changed = request.update_contact(contact, change).await?;
        request.commit().await?;
        Ok(changed)
    }
}

/// One request: a transaction that speaks for one tenant.
#[derive(Debug)]
pub struct TenantTx {
    tx: Transaction<'static, Postgres>,
}

impl TenantTx {
    /// For SQL that has no method here.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// A message of the contact's arrives in an existing conversation; emits `message.received`. Returns its id.
    ///
    /// # Errors
    /// When this tenant has no such conversation, or Reeve refuses the event.
    pub async fn receive_message(&mut self, conversation: i64, body: &str) -> Result<i64, CrmError> {
        Ok(sqlx::query_scalar("SELECT crm.receive_message($1, $2)")
            .bind(conversation)
            .bind(body)
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Sets a message's status; emits `message.status` and returns true when it changed.
    ///
    /// # Errors
    /// When this tenant has no such message, or Reeve refuses the event.
    pub async fn message_status(&mut self, message: i64, status: MessageStatus) -> Result<bool, CrmError> {
        Ok(sqlx::query_scalar("SELECT crm.set_message_status($1, $2::text::crm.message_status)")
            .bind(message)
            .bind(status.as_str())
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Ends a conversation; emits `conversation.ended` and returns true when it was open.
    ///
    /// # Errors
    /// When this tenant has no such conversation, or Reeve refuses the event.
    pub async fn end_conversation(&mut self, conversation: i64) -> Result<bool, CrmError> {
        Ok(sqlx::query_scalar("SELECT crm.close_conversation($1)").bind(conversation).fetch_one(&mut *self.tx).await?)
    }

    /// Changes a contact; emits `contact.updated` and returns true when anything changed.
    ///
    /// # Errors
    /// When this tenant has no such contact or has deleted it, the e-mail address is none, or Reeve refuses the event.
    pub async fn update_contact(&mut self, contact: i64, change: ContactChange<'_>) -> Result<bool, CrmError> {
        Ok(sqlx::query_scalar("SELECT crm.update_contact($1, $2, $3, $4, $5)")
            .bind(contact)
            .bind(change.first_name)
            .bind(change.last_name)
            .bind(change.email)
            .bind(change.phone)
            .fetch_one(&mut *self.tx)
            .await?)
    }

    /// Ids of up to `limit` conversations that have not ended, oldest id first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_conversations(&mut self, limit: i64) -> Result<Vec<i64>, CrmError> {
        Ok(sqlx::query_scalar("SELECT id FROM crm.conversations WHERE ended_at IS NULL ORDER BY id LIMIT $1")
            .bind(limit)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// Ids of up to `limit` contacts that are not deleted, oldest id first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn contacts(&mut self, limit: i64) -> Result<Vec<i64>, CrmError> {
        Ok(sqlx::query_scalar("SELECT id FROM crm.contacts WHERE deleted_at IS NULL ORDER BY id LIMIT $1")
            .bind(limit)
            .fetch_all(&mut *self.tx)
            .await?)
    }

    /// # Errors
    /// When the database fails: then nothing of the request stands, its events included.
    pub async fn commit(self) -> Result<(), CrmError> {
        Ok(self.tx.commit().await?)
    }

    /// # Errors
    /// When the database fails; the request is undone all the same.
    pub async fn rollback(self) -> Result<(), CrmError> {
        Ok(self.tx.rollback().await?)
    }
}
