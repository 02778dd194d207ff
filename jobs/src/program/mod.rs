//! What the three programs share and a web app does not want: configuration, logs, pools, migrations, the look at
//! the database's guards before anything starts, shutdown.
pub mod config;
pub mod db;
pub mod migrate;
pub mod migrate_keys;
pub mod scram;
pub mod shutdown;
pub mod soundness;
pub mod telemetry;

/// First line of every `main`: one TLS provider for the whole process. A library that asks for the default while two are
/// linked would panic.
pub fn install_tls_provider() {
    // An error only says that it is installed already, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
