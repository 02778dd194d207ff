//! The connection to Redis, for the queue there and for the window. Clones share it, and it mends itself when it is cut.
use std::time::Duration;

use ::redis::{Client, RedisError, aio::ConnectionManagerConfig};

/// See the module's head.
pub type Connection = ::redis::aio::ConnectionManager;

/// For a server to take a connection, and to answer a call.
const WITHIN: Duration = Duration::from_secs(2);

/// Connects to the Redis of this URL.
pub async fn open(url: &str) -> Result<Connection, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(WITHIN))
        .set_response_timeout(Some(WITHIN))
        .set_number_of_retries(1)
        .set_max_delay(WITHIN);
    Connection::new_with_config(Client::open(url)?, config).await
}
