//! What the tests of recipes share: a server in memory that misbehaves on demand, clients of it, and patience.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

#[path = "../../../client/tests/fake/mod.rs"]
mod fake;

use std::time::Duration;

use corral_client::Client;
pub use fake::{Cut, Server};

pub async fn client(server: &Server) -> Client {
    Client::connect(&server.address).await.unwrap()
}

/// For what must happen, and soon: a test that hangs says where.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("this must not take twenty seconds")
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Polls a future so often, unless it is ready before, and drops it.
pub async fn poll_and_drop<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = std::pin::pin!(future);
    for _ in 0..polls {
        tokio::select! {
            biased;
            value = &mut future => return Some(value),
            () = tokio::task::yield_now() => {}
        }
    }
    None
}

pub fn no_violations(server: &Server) {
    assert_eq!(server.state.lock().violations, Vec::<String>::new());
}
