//! Latch and selector against a server that cuts connections and ends sessions.

mod common;

use common::{Server, client, no_violations, soon, until};
use corral_client::EndReason;
use corral_recipes::{CloseMode, Election, Error, LatchEvent, Loss, Next, WhenSuspended};

const PATH: &str = "/service/election";

#[tokio::test]
async fn a_latch_steps_down_with_the_connection_and_leads_again_with_the_same_token() {
    let server = Server::start().await;
    let a = client(&server).await;
    let latch = Election::new(&a, PATH).latch("a");
    let mut events = latch.events();
    let Some(LatchEvent::Leading(first)) = soon(events.next()).await else { panic!("it leads") };
    assert!(latch.has_leadership() && first.is_valid());
    server.cut_all();
    let Some(LatchEvent::NotLeading(loss)) = soon(events.next()).await else { panic!("it steps down") };
    assert_eq!(loss, Loss::Suspended);
    let Some(LatchEvent::Leading(second)) = soon(events.next()).await else { panic!("it leads again") };
    assert_eq!((second.token(), second.path()), (first.token(), first.path()));
    // What was lost stays lost for who held it; what it does now needs a look at the new hold.
    assert!(!first.is_valid() && second.is_valid() && latch.has_leadership());
    assert_eq!(soon(first.lost()).await, Loss::Suspended);
    assert_eq!(server.children(PATH).len(), 1);
    soon(latch.close(CloseMode::Silent)).await.unwrap();
    assert!(soon(events.next()).await.is_none());
    assert!(server.children(PATH).is_empty());
    no_violations(&server);
}

#[tokio::test]
async fn a_latch_whose_contender_was_deleted_queues_again_at_the_end() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let first = Election::new(&a, PATH).latch("a");
    let led = soon(first.lead()).await.unwrap();
    let second = Election::new(&b, PATH).latch("b");
    until("both take part", || server.children(PATH).len() == 2).await;
    assert!(!second.has_leadership());
    server.delete(led.path());
    let next = soon(second.lead()).await.unwrap();
    assert!(next.token() > led.token());
    assert_eq!(soon(led.lost()).await, Loss::Removed);
    until("the first is back", || server.children(PATH).len() == 2).await;
    soon(second.close(CloseMode::Silent)).await.unwrap();
    assert!(soon(first.lead()).await.unwrap().token() > next.token());
}

#[tokio::test]
async fn closing_is_silent_or_told_as_asked() {
    let server = Server::start().await;
    let a = client(&server).await;
    for (mode, tells) in [(CloseMode::Silent, false), (CloseMode::Notify, true)] {
        let latch = Election::new(&a, PATH).latch("a");
        let mut events = latch.events();
        assert!(matches!(soon(events.next()).await, Some(LatchEvent::Leading(_))));
        soon(latch.close(mode)).await.unwrap();
        let told = soon(events.next()).await;
        assert_eq!(matches!(told, Some(LatchEvent::NotLeading(Loss::Released))), tells, "{told:?}");
        assert!(soon(events.next()).await.is_none());
    }
}

#[tokio::test]
async fn a_latch_ends_with_its_session_and_a_dropped_one_leaves_nothing() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let latch = Election::new(&a, PATH).when_suspended(WhenSuspended::UntilDeadline).latch("a");
    let mut events = latch.events();
    assert!(matches!(soon(events.next()).await, Some(LatchEvent::Leading(_))));
    server.expire(a.session_id().0);
    assert!(matches!(soon(events.next()).await, Some(LatchEvent::NotLeading(_))));
    loop {
        match soon(events.next()).await {
            None => break,
            // The deletion was seen before the end of the session behind it.
            Some(LatchEvent::Failed(Error::Client(error))) => assert!(error.is_session_end(), "{error}"),
            Some(other) => panic!("{other:?}"),
        }
    }
    soon(latch.lead()).await.unwrap_err();
    let other = Election::new(&b, PATH).latch("b");
    soon(other.lead()).await.unwrap();
    drop(other);
    until("nobody takes part", || server.children(PATH).is_empty()).await;
}

#[tokio::test]
async fn a_proclamation_outlives_the_contender_that_made_it() {
    let server = Server::start().await;
    let a = client(&server).await;
    let election = Election::new(&a, PATH);
    let mut latch = election.latch("a");
    soon(latch.lead()).await.unwrap();
    soon(latch.proclaim("a at work")).await.unwrap();
    let leader = soon(election.leader()).await.unwrap().expect("a leads");
    assert_eq!(leader.data.as_deref(), Some(b"a at work".as_slice()));
    server.delete(&leader.path);
    until("it queues again", || server.children(PATH).iter().any(|name| !leader.path.ends_with(name))).await;
    let again = soon(election.leader()).await.unwrap().expect("a leads again");
    assert_eq!(again.data.as_deref(), Some(b"a at work".as_slice()));
}

#[tokio::test]
async fn a_selector_works_while_it_leads_and_queues_again_when_interrupted() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let (led, mut leading) = tokio::sync::mpsc::unbounded_channel();
    let select = |client: &corral_client::Client, name: &'static str| {
        let led = led.clone();
        Election::new(client, PATH).select(name, move |hold| {
            led.send((name, hold.token())).unwrap();
            std::future::pending()
        })
    };
    let one = select(&a, "a");
    let (name, first) = soon(leading.recv()).await.unwrap();
    assert_eq!(name, "a");
    until("it knows that it leads", || one.has_leadership()).await;
    let mut two = select(&b, "b");
    until("both take part", || server.children(PATH).len() == 2).await;
    one.interrupt();
    let (name, second) = soon(leading.recv()).await.unwrap();
    assert!(name == "b" && second > first);
    until("the first queued again", || server.children(PATH).len() == 2).await;
    assert!(!one.has_leadership());
    soon(one.close()).await.unwrap();
    until("one is left", || server.children(PATH).len() == 1).await;
    server.expire(b.session_id().0);
    let ended = soon(two.ended()).await.unwrap_err();
    let Error::Client(ended) = ended else { panic!("{ended}") };
    assert!(ended.is_session_end() && ended.to_string().contains(&EndReason::Expired.to_string()), "{ended}");
}

#[tokio::test]
async fn a_selector_ends_when_its_work_says_so() {
    let server = Server::start().await;
    let a = client(&server).await;
    let mut left = 3;
    let mut selector = Election::new(&a, PATH).select("a", move |_| {
        left -= 1;
        let next = if left > 0 { Next::Requeue } else { Next::Leave };
        async move { next }
    });
    soon(selector.ended()).await.unwrap();
    assert!(server.children(PATH).is_empty() && !selector.has_leadership());
}
