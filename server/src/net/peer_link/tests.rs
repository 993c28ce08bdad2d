//! Two or three links in one process, on loopback.

use super::*;

const WAIT: Duration = Duration::from_secs(20);

/// One server's links and what they report.
struct Side {
    links: PeerLinks,
    events: mpsc::Receiver<LinkEvent>,
}

struct NoSnapshots;

impl SnapshotSource for NoSnapshots {
    fn manifest(&self, id: u64, _cluster: u64) -> Result<SnapshotManifest, String> {
        Err(format!("no snapshot {id}"))
    }
    fn read(&self, _id: u64, _file: &str, _offset: u64, _max: usize) -> std::io::Result<Bytes> {
        Err(std::io::Error::from(std::io::ErrorKind::NotFound))
    }
}

fn options(me: u64, peers: &[(u64, String)]) -> LinkOptions {
    LinkOptions {
        me: ServerId(me),
        instance: 1000 + me,
        start_count: 5,
        feature_level: 1,
        config_hash: 42,
        secret: "s".into(),
        peers: peers.iter().map(|(id, addr)| (ServerId(*id), addr.clone())).collect(),
        connect_timeout: Duration::from_secs(2),
        keep_alive: Duration::from_secs(10),
        queue_bytes: QUEUE_BYTES_MAX,
        seed: me,
        remembered: BTreeMap::new(),
        superseded: Vec::new(),
        whole_since: 0,
        standing: Standing { cluster: 8, memory: Memory::Whole, promise: 4, end: Zxid::new(4, 10) },
    }
}

async fn listener() -> (TcpListener, String) {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

fn start(options: LinkOptions, listener: TcpListener) -> Side {
    start_with(options, listener, Arc::new(NoSnapshots), 64)
}

fn start_with(o: LinkOptions, listener: TcpListener, source: Arc<dyn SnapshotSource>, capacity: usize) -> Side {
    let (tx, events) = mpsc::channel(capacity);
    Side { links: PeerLinks::start(o, listener, source, tx), events }
}

impl Side {
    async fn next(&mut self) -> LinkEvent {
        tokio::time::timeout(WAIT, self.events.recv()).await.expect("an event").expect("links run")
    }

    /// The next link that comes up.
    async fn up(&mut self) -> u64 {
        loop {
            if let LinkEvent::Up { link, .. } = self.next().await {
                return link;
            }
        }
    }

    async fn refused(&mut self) -> (String, bool) {
        loop {
            match self.next().await {
                LinkEvent::Refused { reason, stale, .. } => return (reason, stale.is_some()),
                LinkEvent::Up { .. } => panic!("a link came up"),
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> (u64, Bytes) {
        loop {
            if let LinkEvent::Frame { link, bytes, .. } = self.next().await {
                return (link, bytes);
            }
        }
    }
}

/// Server 2, which dials, and server 1, which listens; each may be changed before it starts.
async fn pair(one: impl FnOnce(&mut LinkOptions), two: impl FnOnce(&mut LinkOptions)) -> (Side, Side) {
    let (listener1, addr1) = listener().await;
    let (listener2, addr2) = listener().await;
    let mut options1 = options(1, &[(2, addr2)]);
    let mut options2 = options(2, &[(1, addr1)]);
    one(&mut options1);
    two(&mut options2);
    (start(options1, listener1), start(options2, listener2))
}

#[tokio::test]
async fn a_stream_that_fell_silent_is_begun_again_by_who_dialled_it() {
    let (listener1, addr1) = listener().await;
    let (listener2, addr2) = listener().await;
    let (relay, relayed) = listener().await;
    let silence = CancellationToken::new();
    let is_silent = silence.clone();
    tokio::spawn(async move {
        // Of the first connection both ends stay, and nothing passes any more: neither side hears of an end.
        let mut held = Vec::new();
        while let Ok((mut near, _)) = relay.accept().await {
            let mut far = tokio::net::TcpStream::connect(&addr1).await.unwrap();
            if held.is_empty() {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = is_silent.cancelled() => {}
                }
                held.push((near, far));
            } else {
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
            }
        }
    });
    let mut options2 = options(2, &[(1, relayed)]);
    options2.keep_alive = Duration::from_millis(100);
    let mut one = start(options(1, &[(2, addr2)]), listener1);
    let mut two = start(options2, listener2);
    let (link1, link2) = (one.up().await, two.up().await);
    silence.cancel();
    assert!(two.up().await > link2);
    assert!(one.up().await > link1, "the new stream replaces the old one");
}

#[tokio::test]
async fn a_stream_carries_frames_in_order_both_ways() {
    let (mut one, mut two) = pair(|_| {}, |_| {}).await;
    let (link1, link2) = (one.up().await, two.up().await);
    for n in 0..2000_u32 {
        assert!(one.links.send(ServerId(2), link1, Bytes::from(n.to_be_bytes().to_vec())));
        assert!(two.links.send(ServerId(1), link2, Bytes::from((n + 1).to_be_bytes().to_vec())));
        if n % 50 == 49 {
            for m in n - 49..=n {
                assert_eq!(two.frame().await, (link2, Bytes::from(m.to_be_bytes().to_vec())));
                assert_eq!(one.frame().await, (link1, Bytes::from((m + 1).to_be_bytes().to_vec())));
            }
        }
    }
    one.links.stop().await;
    two.links.stop().await;
}

#[tokio::test]
async fn a_peer_is_introduced_with_its_disk_and_its_start() {
    let (mut one, mut two) = pair(|_| {}, |o| o.start_count = 9).await;
    let first = one.next().await;
    let expected = LinkEvent::Up {
        peer: ServerId(2),
        link: 1,
        instance: 1002,
        start_count: 9,
        whole_since: 0,
        foreign: false,
        feature_level: 1,
    };
    assert_eq!(first, expected);
    two.up().await;
    assert_eq!(
        one.links.remembered()[&ServerId(2)],
        StartMemory { instance: 1002, start_count: 9, ..StartMemory::default() }
    );
    assert_eq!(
        two.links.remembered()[&ServerId(1)],
        StartMemory { instance: 1001, start_count: 5, ..StartMemory::default() }
    );
}

#[tokio::test]
async fn a_server_that_is_going_down_begins_no_stream_and_keeps_those_that_are_up() {
    let (mut one, mut two) = pair(|_| {}, |_| {}).await;
    let (link1, link2) = (one.up().await, two.up().await);
    one.links.quiesce();
    assert!(two.links.send(ServerId(1), link2, Bytes::from_static(b"still here")));
    assert_eq!(one.frame().await, (link1, Bytes::from_static(b"still here")));
    one.links.close(ServerId(2), link1);
    assert_eq!(one.next().await, LinkEvent::Down { peer: ServerId(2), link: link1 });
    assert_eq!(two.next().await, LinkEvent::Down { peer: ServerId(1), link: link2 });

    // The peer dials again, and is told in so many words.
    let shared = two.links.shared.clone();
    match dial(shared, ServerId(1)).await {
        Err(LinkError::Ended(reason)) => assert_eq!(reason, "this server is going down"),
        other => panic!("{other:?}"),
    }
    one.links.stop().await;
    assert_eq!(one.events.try_recv(), Err(mpsc::error::TryRecvError::Empty), "nothing came up again");
    two.links.stop().await;
}

#[test]
fn a_stream_that_ends_right_after_it_began_is_a_failed_attempt() {
    assert_eq!(backoff_after(&Ok(Duration::ZERO), 400), 400);
    assert_eq!(backoff_after(&Ok(SOUND_AFTER), 400), BACKOFF_MIN_MS);
    assert_eq!(backoff_after(&Err(LinkError::Ended("gone".into())), 400), 400);
    assert_eq!(backoff_after(&Err(LinkError::Refused("old".into())), 400), BACKOFF_MAX_MS);
}

#[tokio::test]
async fn a_restarted_peer_gets_a_larger_link_and_the_old_one_is_dead() {
    let (listener1, addr1) = listener().await;
    let mut one = start(options(1, &[(2, "127.0.0.1:1".into())]), listener1);
    let (listener2, _) = listener().await;
    let mut two = start(options(2, &[(1, addr1.clone())]), listener2);
    let old = one.up().await;
    two.up().await;
    two.links.stop().await;
    assert_eq!(one.next().await, LinkEvent::Down { peer: ServerId(2), link: old });
    assert!(!one.links.send(ServerId(2), old, Bytes::from_static(b"late")), "nothing is sent over a dead link");

    let (listener2, _) = listener().await;
    let mut again = options(2, &[(1, addr1)]);
    again.start_count = 6;
    let mut two = start(again, listener2);
    let new = one.up().await;
    assert!(new > old);
    two.up().await;
    assert!(!one.links.send(ServerId(2), old, Bytes::from_static(b"late")));
    assert!(one.links.send(ServerId(2), new, Bytes::from_static(b"now")));
    assert_eq!(two.frame().await.1, Bytes::from_static(b"now"));
}

#[tokio::test]
async fn a_new_stream_replaces_the_old_one_of_the_same_peer() {
    let (listener1, addr1) = listener().await;
    let mut one = start(options(1, &[(2, "127.0.0.1:1".into())]), listener1);
    let (listener2, _) = listener().await;
    let mut first = start(options(2, &[(1, addr1.clone())]), listener2);
    let old = one.up().await;
    first.up().await;
    // The same server again, as after a reset that only the dialler noticed.
    let (listener2, _) = listener().await;
    let mut second = start(options(2, &[(1, addr1)]), listener2);
    let new = one.up().await;
    assert!(new > old);
    second.up().await;
    assert!(!one.links.send(ServerId(2), old, Bytes::from_static(b"x")));
    // The first dialler is told, at once.
    assert_eq!(first.next().await, LinkEvent::Down { peer: ServerId(1), link: 1 });
    first.links.stop().await;
    second.links.stop().await;
}

#[tokio::test]
async fn servers_that_should_not_talk_say_why_on_both_sides() {
    type Change = fn(&mut LinkOptions);
    let cases: [(Change, &str); 5] = [
        (|o| o.config_hash = 7, "configured with different members (hash"),
        (|o| o.secret = "other".into(), "server 1 and server 2 have different secrets (peerSecretFile)"),
        (|o| o.me = ServerId(7), "server 7 is not a member in the configuration of server 1"),
        (|o| o.instance = 1001, "server 1 and server 2 run on copies of one data folder"),
        (|o| o.me = ServerId(1), "two servers call themselves 1: check their myid files"),
    ];
    for (change, expected) in cases {
        let (listener1, addr1) = listener().await;
        let (listener2, _) = listener().await;
        let mut one = start(options(1, &[(2, "127.0.0.1:1".into())]), listener1);
        let mut wrong = options(2, &[(1, addr1)]);
        change(&mut wrong);
        // A server that takes itself for 1 does not dial server 1; the rule is checked all the same.
        if wrong.me == ServerId(1) {
            let hello = Hello {
                server: 1,
                protocol: PROTOCOL_VERSION,
                secret: "s".into(),
                config_hash: 42,
                ..Hello::default()
            };
            let refusal = check_hello(&wrong, wrong.standing, &hello, &Known::default()).unwrap_err();
            assert_eq!(refusal, Refusal::new(expected.to_owned()));
            continue;
        }
        let stranger = wrong.me != ServerId(2);
        let mut two = start(wrong, listener2);
        let (reason, stale) = two.refused().await;
        assert!(reason.contains(expected), "{reason}");
        assert!(!stale);
        // A stranger is no peer that could be reported; the log names it.
        if !stranger {
            assert_eq!(one.refused().await, (reason, false));
        }
        one.links.stop().await;
        two.links.stop().await;
    }
}

#[tokio::test]
async fn another_version_of_the_protocol_is_refused() {
    let hello = Hello { server: 2, protocol: PROTOCOL_VERSION + 1, secret: "s".into(), ..Hello::default() };
    let me = options(1, &[(2, String::new())]);
    let refusal = check_hello(&me, me.standing, &hello, &Known::default()).unwrap_err();
    assert_eq!(refusal.reason, "server 1 speaks version 3 of the protocol between servers, server 2 version 4");
}

#[tokio::test]
async fn an_old_copy_of_a_data_folder_is_told_so_whoever_dials() {
    let seen = |id: u64, instance| {
        BTreeMap::from([(ServerId(id), StartMemory { instance, start_count: 6, ..StartMemory::default() })])
    };
    // The acceptor remembers the dialler.
    let (mut one, mut two) = pair(|o| o.remembered = seen(2, 1002), |_| {}).await;
    let expected =
        "server 2 runs on an old copy of its data folder: this is its start 5, and server 1 has seen start 6";
    assert_eq!(one.refused().await, (expected.to_string(), false));
    assert_eq!(two.refused().await, (expected.to_string(), true));
    // The dialler remembers the acceptor.
    let (mut one, mut two) = pair(|_| {}, |o| o.remembered = seen(1, 1001)).await;
    let expected =
        "server 1 runs on an old copy of its data folder: this is its start 5, and server 2 has seen start 6";
    assert_eq!(one.refused().await, (expected.to_string(), true));
    assert_eq!(two.refused().await, (expected.to_string(), false));
    // Another disk is another story.
    let (mut one, mut two) = pair(|o| o.remembered = seen(2, 9), |_| {}).await;
    one.up().await;
    two.up().await;
}

#[tokio::test]
async fn a_copy_that_knows_less_than_was_seen_of_its_disk_is_told_so_whoever_dials() {
    let mark = |start_count, promise, counter| Mark { start_count, promise, end: Zxid::new(4, counter) };
    let seen =
        |id: u64, mark| BTreeMap::from([(ServerId(id), StartMemory { instance: 1000 + id, start_count: 5, mark })]);
    // Both stand at epoch 4 and entry (4, 10).
    for more in [mark(5, 4, 11), mark(3, 5, 0), mark(5, 5, 99)] {
        let (mut one, mut two) = pair(|o| o.remembered = seen(2, more), |_| {}).await;
        let (reason, stale) = two.refused().await;
        assert!(reason.starts_with("server 2 runs on an old copy of its data folder: it knows epoch 4"), "{reason}");
        assert!(stale);
        assert_eq!(one.refused().await, (reason, false));
        let (mut one, mut two) = pair(|_| {}, |o| o.remembered = seen(1, more)).await;
        let (reason, stale) = one.refused().await;
        assert!(reason.starts_with("server 1 runs on an old copy"), "{reason}");
        assert!(stale);
        assert_eq!(two.refused().await, (reason, false));
    }
    for no_more in [mark(5, 4, 10), mark(5, 4, 2), mark(5, 3, 99), Mark::default()] {
        let (mut one, mut two) = pair(|o| o.remembered = seen(2, no_more), |_| {}).await;
        one.up().await;
        two.up().await;
    }
    // What was seen before it lost its memory, or while it does not count, says nothing.
    let lost = |o: &mut LinkOptions| o.standing.memory = Memory::Lost;
    let later = |o: &mut LinkOptions| o.whole_since = 4;
    let changes: [fn(&mut LinkOptions); 2] = [lost, later];
    for change in changes {
        let (mut one, mut two) = pair(|o| o.remembered = seen(2, mark(3, 9, 9)), change).await;
        one.up().await;
        two.up().await;
    }
}

#[tokio::test]
async fn what_was_seen_of_a_server_in_another_cluster_does_not_count_against_it() {
    let more = |id: u64| {
        let mark = Mark { start_count: 5, promise: 9, end: Zxid::new(9, 9) };
        BTreeMap::from([(ServerId(id), StartMemory { instance: 1000 + id, start_count: 5, mark })])
    };
    let other_cluster = |o: &mut LinkOptions| o.standing.cluster = 9;
    for dialler_knows in [false, true] {
        // One of them was made the origin of a new cluster, with less than the other has seen of it.
        let (mut one, mut two) = match dialler_knows {
            false => pair(|o| o.remembered = more(2), other_cluster).await,
            true => pair(other_cluster, |o| o.remembered = more(1)).await,
        };
        let (up1, up2) = (one.up().await, two.up().await);
        // What was remembered stays: an old copy of its own cluster is still known by it.
        let (keeper, teller, id) = if dialler_knows { (&mut two, &one, 1) } else { (&mut one, &two, 2) };
        teller.links.tell(10, Zxid::new(9, 10));
        let to = if dialler_knows { (ServerId(2), up1) } else { (ServerId(1), up2) };
        assert!(teller.links.send(to.0, to.1, Bytes::from_static(b"after the mark")));
        assert!(matches!(keeper.next().await, LinkEvent::Frame { .. }), "its marks are not reported");
        assert_eq!(keeper.links.remembered(), more(id));
    }
    // A server that does not know its cluster yet may be of any.
    let (mut one, mut two) = pair(|o| o.remembered = more(2), |o| o.standing.cluster = 0).await;
    assert!(one.refused().await.0.starts_with("server 2 runs on an old copy"));
    assert!(two.refused().await.1);
}

#[tokio::test]
async fn a_start_count_that_nobody_reaches_locks_nobody_out() {
    let absurd = START_COUNT_MAX + 1;
    let seen = |id: u64, start_count, mark_start| {
        let absurd_mark = Mark { start_count: mark_start, promise: 9, end: Zxid::new(9, 9) };
        let mark = if mark_start > 0 { absurd_mark } else { Mark::default() };
        BTreeMap::from([(ServerId(id), StartMemory { instance: 1000 + id, start_count, mark })])
    };
    // What a peer says that it has seen.
    for (start_count, mark_start) in [(u64::MAX, 0), (absurd, 0), (5, absurd)] {
        let (mut one, mut two) = pair(|_| {}, |o| o.remembered = seen(1, start_count, mark_start)).await;
        let replaced = Disk { instance: 1001, start_count: absurd };
        one.up().await;
        two.up().await;
        let (mut one, mut two) = pair(|_| {}, |o| o.superseded = vec![(ServerId(1), replaced)]).await;
        one.up().await;
        two.up().await;
    }
    // What a server says of itself: it is let in, and nothing of it is kept that the next start would be measured by.
    let (mut one, mut two) = pair(|_| {}, |o| o.start_count = absurd).await;
    one.up().await;
    two.up().await;
    assert_eq!(one.links.remembered(), BTreeMap::new());
}

#[tokio::test]
async fn a_disk_that_was_replaced_does_not_come_back() {
    for dialler_knows in [false, true] {
        let replaced = |id: u64| vec![(ServerId(id), Disk { instance: 1000 + id, start_count: 4 })];
        let (mut one, mut two) = match dialler_knows {
            false => pair(|o| o.superseded = replaced(2), |_| {}).await,
            true => pair(|_| {}, |o| o.superseded = replaced(1)).await,
        };
        let (old, other, name) = if dialler_knows { (&mut one, &mut two, 1) } else { (&mut two, &mut one, 2) };
        let (reason, stale) = old.refused().await;
        assert!(reason.starts_with(&format!("server {name} runs on an old copy")), "{reason}");
        assert!(reason.contains("has seen it on a later one") && stale, "{reason}");
        assert_eq!(other.refused().await, (reason, false));
    }
    // An empty folder has nothing to forget; and what has been learned again since counts.
    let fresh = |o: &mut LinkOptions| o.standing = Standing::default();
    let relearned = |o: &mut LinkOptions| o.whole_since = 5;
    let changes: [fn(&mut LinkOptions); 2] = [fresh, relearned];
    for change in changes {
        let replaced = vec![(ServerId(2), Disk { instance: 1002, start_count: 4 })];
        let (mut one, mut two) = pair(|o| o.superseded = replaced, change).await;
        one.up().await;
        two.up().await;
    }
}

#[tokio::test]
async fn what_a_peer_says_that_it_holds_is_remembered_and_only_rises() {
    let (mut one, mut two) = pair(|_| {}, |_| {}).await;
    one.up().await;
    two.up().await;
    for (promise, counter) in [(4, 12), (4, 11), (5, 3)] {
        two.links.tell(promise, Zxid::new(4, counter));
    }
    for (promise, counter) in [(4, 12), (5, 3)] {
        let mark = Mark { start_count: 5, promise, end: Zxid::new(4, counter) };
        assert_eq!(one.next().await, LinkEvent::Marked { peer: ServerId(2), instance: 1002, mark });
    }
    assert_eq!(one.links.remembered()[&ServerId(2)].mark, Mark { start_count: 5, promise: 5, end: Zxid::new(4, 3) });
}

#[tokio::test]
async fn a_reason_is_reported_once_and_a_link_comes_up_when_it_is_gone() {
    let (listener1, addr1) = listener().await;
    let mut one = start(options(1, &[(2, "127.0.0.1:1".into())]), listener1);
    let (listener2, _) = listener().await;
    let mut wrong = options(2, &[(1, addr1.clone())]);
    wrong.config_hash = 7;
    let mut two = start(wrong, listener2);
    two.refused().await;
    one.refused().await;
    // It goes on trying, in silence.
    assert!(tokio::time::timeout(Duration::from_millis(1500), two.events.recv()).await.is_err());
    two.links.stop().await;
    let (listener2, _) = listener().await;
    let mut two = start(options(2, &[(1, addr1)]), listener2);
    one.up().await;
    two.up().await;
}

#[tokio::test]
async fn a_queue_that_overflows_ends_its_stream_and_the_next_one_works() {
    let (mut one, mut two) = pair(|o| o.queue_bytes = 1 << 20, |_| {}).await;
    let (link1, link2) = (one.up().await, two.up().await);
    // Nobody takes what server 2 receives, so the windows fill, then the queue.
    let frame = Bytes::from(vec![7; 512 << 10]);
    let sent = (0..1000).take_while(|_| one.links.send(ServerId(2), link1, frame.clone())).count();
    assert!(sent < 1000);
    assert!(!one.links.send(ServerId(2), link1, Bytes::from_static(b"x")), "the stream is ending");
    assert_eq!(one.next().await, LinkEvent::Down { peer: ServerId(2), link: link1 });
    // Server 2 takes what came, in order, then the end; and dials again.
    let again = two.up().await;
    assert!(again > link2);
    let link1 = one.up().await;
    assert!(one.links.send(ServerId(2), link1, Bytes::from_static(b"y")));
    assert_eq!(two.frame().await, (again, Bytes::from_static(b"y")));
}

#[tokio::test]
async fn a_link_can_be_closed_for_breaking_a_rule() {
    let (mut one, mut two) = pair(|_| {}, |_| {}).await;
    let (link1, link2) = (one.up().await, two.up().await);
    one.links.close(ServerId(2), link1);
    assert_eq!(one.next().await, LinkEvent::Down { peer: ServerId(2), link: link1 });
    assert_eq!(two.next().await, LinkEvent::Down { peer: ServerId(1), link: link2 });
    assert!(two.up().await > link2);
}

#[tokio::test]
async fn a_stranger_without_a_hello_gets_nothing() {
    let (listener1, addr1) = listener().await;
    let mut one = start(options(1, &[(2, "127.0.0.1:1".into())]), listener1);
    let mut client = PeerClient::new(connect(&addr1, WAIT, (KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)).await.unwrap());
    let frame = Frame { body: Some(frame::Body::Messages(Bytes::from_static(b"let me in"))) };
    let status = client.link(stream::iter([frame])).await.unwrap_err();
    assert_eq!(status.message(), "the first frame is no hello");
    assert!(one.events.try_recv().is_err());
}

#[tokio::test]
async fn three_servers_have_one_stream_a_pair() {
    let mut listeners = Vec::new();
    for id in 1..=3_u64 {
        let (listener, addr) = listener().await;
        listeners.push((id, listener, addr));
    }
    let addresses: Vec<(u64, String)> = listeners.iter().map(|(id, _, addr)| (*id, addr.clone())).collect();
    let mut sides = Vec::new();
    for (id, listener, _) in listeners {
        let peers: Vec<(u64, String)> = addresses.iter().filter(|(p, _)| *p != id).cloned().collect();
        sides.push(start(options(id, &peers), listener));
    }
    for side in &mut sides {
        let (first, second) = (side.up().await, side.up().await);
        assert_ne!(first, second);
        assert!(side.events.try_recv().is_err());
    }
}

// ------------------------------------------------------------------------------------------------------- snapshots

/// Files in memory; one may be made to lie.
struct Files {
    files: Vec<(&'static str, Vec<u8>)>,
    /// This file is shorter than its manifest says.
    truncated: Option<&'static str>,
}

impl SnapshotSource for Files {
    fn manifest(&self, id: u64, cluster: u64) -> Result<SnapshotManifest, String> {
        if (id, cluster) != (3, 77) {
            return Err(format!("no snapshot {id} of cluster {cluster}"));
        }
        let files = self.files.iter().map(|(n, b)| (n.to_string(), b.len() as u64)).collect();
        Ok(SnapshotManifest { zxid: Zxid::new(2, 9), files })
    }
    fn read(&self, _id: u64, file: &str, offset: u64, max: usize) -> std::io::Result<Bytes> {
        let (_, bytes) = self.files.iter().find(|(n, _)| *n == file).expect("asked for what the manifest names");
        let length = if self.truncated == Some(file) { bytes.len() / 2 } else { bytes.len() };
        let from = (offset as usize).min(length);
        Ok(Bytes::copy_from_slice(&bytes[from..(from + max).min(length)]))
    }
}

fn some_files() -> Vec<(&'static str, Vec<u8>)> {
    let large = (0..CHUNK_BYTES * 2 + 100).map(|i| (i * 31 % 251) as u8).collect();
    vec![("CURRENT", b"MANIFEST-1\n".to_vec()), ("empty", vec![]), ("000007.sst", large), ("last", vec![])]
}

async fn fetch(
    source: Files,
    id: u64,
    secret: &str,
) -> Result<(SnapshotManifest, BTreeMap<String, Vec<u8>>), LinkError> {
    let (listener1, addr1) = listener().await;
    let side = start_with(options(1, &[]), listener1, Arc::new(source), 1);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let result = fetch_snapshot(&addr1, id, 77, secret, WAIT, |part| {
        match part {
            Fetched::Manifest(manifest) => {
                files.extend(manifest.files.iter().map(|(name, _)| (name.clone(), Vec::new())));
            }
            Fetched::Chunk { file, offset, data } => {
                let so_far = files.get_mut(file).expect("named by the manifest");
                assert_eq!(so_far.len() as u64, offset);
                so_far.extend_from_slice(&data);
            }
        }
        Ok(())
    })
    .await;
    side.links.stop().await;
    result.map(|manifest| (manifest, files))
}

#[tokio::test]
async fn a_snapshot_arrives_whole() {
    let (manifest, files) = fetch(Files { files: some_files(), truncated: None }, 3, "s").await.unwrap();
    assert_eq!(manifest.zxid, Zxid::new(2, 9));
    let expected: BTreeMap<String, Vec<u8>> = some_files().into_iter().map(|(n, b)| (n.to_string(), b)).collect();
    assert_eq!(files, expected);
}

#[tokio::test]
async fn a_snapshot_that_is_gone_damaged_or_not_for_us_is_an_error() {
    let source = || Files { files: some_files(), truncated: None };
    let text = |e: Result<_, LinkError>| e.map(|(m, _): (SnapshotManifest, _)| m).unwrap_err().to_string();
    assert_eq!(text(fetch(source(), 4, "s").await), "stream ended: no snapshot 4 of cluster 77");
    assert_eq!(text(fetch(source(), 3, "wrong").await), "stream ended: different secrets (peerSecretFile)");
    let short = Files { truncated: Some("000007.sst"), ..source() };
    assert!(text(fetch(short, 3, "s").await).contains("shorter than"));
    let outside = Files { files: vec![("../myid", b"1".to_vec())], truncated: None };
    assert_eq!(text(fetch(outside, 3, "s").await), "protocol error: a snapshot with a file called \"../myid\"");
}

#[test]
fn a_chunk_out_of_place_or_with_a_wrong_checksum_is_refused() {
    let manifest = || FetchChunk {
        body: Some(fetch_chunk::Body::Manifest(pb::Manifest {
            zxid: 1,
            files: vec![pb::File { name: "a".into(), size: 4 }, pb::File { name: "b".into(), size: 0 }],
        })),
    };
    let chunk = |file, offset, data: &'static [u8], crc32c| FetchChunk {
        body: Some(fetch_chunk::Body::Chunk(pb::Chunk { file, offset, data: Bytes::from_static(data), crc32c })),
    };
    let good = chunk(0, 0, b"ab", crc32c::crc32c(b"ab"));
    let take = |chunks: Vec<FetchChunk>| {
        let mut receiver = Receiver::default();
        for chunk in chunks {
            receiver.take(chunk, &mut |_| Ok(()))?;
        }
        receiver.finish()
    };
    for wrong in [
        vec![good.clone()],
        vec![manifest(), manifest()],
        vec![manifest(), chunk(0, 0, b"ab", 1)],
        vec![manifest(), chunk(1, 0, b"ab", crc32c::crc32c(b"ab"))],
        vec![manifest(), good.clone(), good.clone()],
        vec![manifest(), chunk(0, 0, b"abcde", crc32c::crc32c(b"abcde"))],
        vec![manifest(), chunk(0, 0, b"", 0)],
        vec![manifest(), good.clone()],
        vec![],
    ] {
        assert!(take(wrong).is_err());
    }
    let whole = vec![manifest(), good, chunk(0, 2, b"cd", crc32c::crc32c(b"cd"))];
    assert_eq!(take(whole).unwrap().files.len(), 2);
}
