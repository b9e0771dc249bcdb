//! The job in tokio-postgres.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, TryStreamExt as _};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What a shell inside `iapctl connect` prints of its environment: host, port, user and database.
pub(super) fn local_environment(said: impl Read) -> BTreeMap<String, String> {
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line).unwrap();
    let names = ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE"];
    let values = line.split_whitespace().map(str::to_owned);
    names.map(str::to_owned).into_iter().zip(values).collect()
}

/// Does the job, and tells what came of it.
pub(super) fn work(variables: &BTreeMap<String, String>, tls: bool) -> Value {
    let mut config = Config::new();
    config
        .host(&variables["PGHOST"])
        .port(variables["PGPORT"].parse().unwrap())
        .user(&variables["PGUSER"])
        .dbname(&variables["PGDATABASE"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        if !tls {
            let (client, connection) = config.ssl_mode(SslMode::Disable).connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            return job(client, NoTls).await;
        }
        let connector = MakeRustlsConnect::new(tls_of(variables));
        config
            .hostaddr(variables["PGHOSTADDR"].parse().unwrap())
            .ssl_mode(SslMode::Require);
        let (client, connection) = config.connect(connector.clone()).await.unwrap();
        tokio::spawn(connection);
        job(client, connector).await
    })
}

fn tls_of(variables: &BTreeMap<String, String>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::pem_file_iter(&variables["IAP_CA"]).unwrap();
    roots.add_parsable_certificates(trusted.map(Result::unwrap));
    let chain = CertificateDer::pem_file_iter(&variables["IAP_CERT"]).unwrap();
    let key = PrivateKeyDer::from_pem_file(&variables["IAP_KEY"]).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap()
}

async fn job<T>(mut client: Client, tls: T) -> Value
where
    T: tokio_postgres::tls::MakeTlsConnect<Socket> + Send + 'static,
    T::Stream: Send,
    T::TlsConnect: Send,
    <T::TlsConnect as tokio_postgres::tls::TlsConnect<Socket>>::Future: Send,
{
    let user = client.simple_query("select current_user").await.unwrap();
    let user = user.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let statement = client.prepare("select $1::int + $2::int").await.unwrap();
    let sum: i32 = client.query_one(&statement, &[&40, &2]).await.unwrap().get(0);
    let copied = copy(&mut client).await;
    let failure = client.batch_execute("select 1 / 0").await.unwrap_err();
    let token = client.cancel_token();
    let cancelling = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        token.cancel_query(tls).await.unwrap();
    });
    let cancelled = client.batch_execute("select pg_sleep(60)").await.unwrap_err();
    cancelling.await.unwrap();
    let code = |error: &tokio_postgres::Error| error.code().map(|state| state.code().to_owned());
    json!({
        "client": "tokio-postgres", "user": user, "sum": sum, "copied": copied,
        "sqlstate": code(&failure), "cancelled": code(&cancelled),
    })
}

async fn copy(client: &mut Client) -> usize {
    let table = "create temporary table rows (number int, text text)";
    client.batch_execute(table).await.unwrap();
    let lines: String = (0..1000)
        .map(|number| format!("{number}\trow {number}\n"))
        .collect();
    let sink = client
        .copy_in::<_, bytes::Bytes>("copy rows from stdin")
        .await
        .unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(lines.into()).await.unwrap();
    assert_eq!(sink.finish().await.unwrap(), 1000);
    let rows = client.copy_out("copy rows to stdout").await.unwrap();
    let rows: Vec<bytes::Bytes> = rows.try_collect().await.unwrap();
    rows.iter().flatten().filter(|byte| **byte == b'\n').count()
}
