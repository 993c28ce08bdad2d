//! Presence, groups, discovery and partitions against a server that cuts connections and ends sessions.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::{Server, client, no_violations, soon, until};
use corral_client::{Client, ErrorCode};
use corral_recipes::{
    Change, Discovery, DownPolicy, Election, Error, Group, GroupLayout, Here, Kept, PartitionEvent, Partitioner,
    Presence, Rejoin, ServiceInstance, ServiceType, Strategy, TtlNode, UriSpec, View, WhenSuspended,
};
use parking_lot::Mutex;

fn new_session(server: &Server) -> Rejoin {
    Rejoin::NewSession(Box::new(Client::builder(&server.address)))
}

#[tokio::test]
async fn a_presence_comes_back_after_a_deletion_with_its_latest_data() {
    let server = Server::start().await;
    let a = client(&server).await;
    let mut here = Presence::new(&a, "/hosts/a").data("up").start();
    let first = soon(here.created()).await.unwrap();
    soon(here.set_data("busy")).await.unwrap();
    server.delete("/hosts/a");
    let mut state = here.here();
    soon(state.wait_for(|here| matches!(here, Here::At { token, .. } if *token > first))).await.unwrap();
    assert_eq!(server.data("/hosts/a").as_deref(), Some(b"busy".as_slice()));
    soon(here.close()).await.unwrap();
    assert!(!server.exists("/hosts/a"));
    assert_eq!(*state.borrow(), Here::Closed);
}

#[tokio::test]
async fn a_presence_ends_with_its_session_or_begins_another_as_asked() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let mortal = Presence::new(&a, "/hosts/a").start();
    let immortal = Presence::new(&b, "/hosts/b").data("b").rejoin(new_session(&server)).start();
    soon(mortal.created()).await.unwrap();
    let first = soon(immortal.created()).await.unwrap();
    server.expire(a.session_id().0);
    server.expire(b.session_id().0);
    let mut state = mortal.here();
    let over = soon(state.wait_for(|here| matches!(here, Here::Ended(_)))).await.unwrap().clone();
    let Here::Ended(Error::Client(error)) = over else { panic!("{over:?}") };
    assert!(error.is_session_end(), "{error}");
    let mut state = immortal.here();
    soon(state.wait_for(|here| matches!(here, Here::At { token, .. } if *token > first))).await.unwrap();
    assert_eq!(server.data("/hosts/b").as_deref(), Some(b"b".as_slice()));
    assert!(!server.exists("/hosts/a"));
    // Dropped: gone in the background.
    drop(immortal);
    until("b is gone", || !server.exists("/hosts/b")).await;
}

#[tokio::test]
async fn a_name_of_a_dying_session_is_waited_for_and_never_taken_for_ours() {
    let server = Server::start().await;
    let (old, new) = (client(&server).await, client(&server).await);
    let before = Presence::new(&old, "/hosts/a").data("old").start();
    let token = soon(before.created()).await.unwrap();
    let after = Presence::new(&new, "/hosts/a").data("new").start();
    server.cut_all();
    soon(new.sync("/")).await.unwrap();
    assert_eq!(*after.here().borrow(), Here::Not);
    server.expire(old.session_id().0);
    assert!(soon(after.created()).await.unwrap() > token);
    assert_eq!(server.data("/hosts/a").as_deref(), Some(b"new".as_slice()));
    no_violations(&server);
}

#[tokio::test]
async fn a_presence_that_closes_leaves_anothers_znode_of_the_same_name_alone() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    // Events reach the older connection first, so of two that race for the name the other's wins.
    let mine = Presence::new(&b, "/hosts/x").data("mine").start();
    soon(mine.created()).await.unwrap();
    let theirs = Presence::new(&a, "/hosts/x").data("theirs").start();
    soon(async {
        while server.data("/hosts/x").as_deref() != Some(b"theirs") {
            a.sync("/").await.unwrap();
            if server.exists("/hosts/x") {
                server.delete("/hosts/x");
            }
            until("somebody is there", || server.exists("/hosts/x")).await;
        }
    })
    .await;
    soon(theirs.created()).await.unwrap();
    soon(mine.close()).await.unwrap();
    assert_eq!(server.data("/hosts/x").as_deref(), Some(b"theirs".as_slice()));
}

fn ids(view: &View) -> Vec<&str> {
    view.members.iter().map(|member| member.id.as_str()).collect()
}

#[tokio::test]
async fn members_see_the_same_order_under_the_same_epoch() {
    let server = Server::start().await;
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let group = |client: &Client| Group::new(client, "/g/one");
    let mut views = soon(group(&c).views()).await.unwrap();
    assert_eq!(soon(views.next()).await.unwrap(), View::default());
    let first = group(&a).join("z", "1").start();
    soon(first.created()).await.unwrap();
    let mut second = group(&b).layout(GroupLayout::Kazoo).join("a", ()).start();
    soon(second.created()).await.unwrap();
    let view = loop {
        let view = soon(views.next()).await.unwrap();
        if view.members.len() == 2 {
            break view;
        }
    };
    // In the order of joining, and not by name; kazoo's layout beside Curator's.
    assert_eq!(ids(&view), ["z", "a"]);
    assert_eq!(soon(group(&a).view()).await.unwrap(), soon(group(&b).view()).await.unwrap());
    assert_eq!(view.member("z").unwrap().session, a.session_id());
    // Other data is another view of the same epoch.
    soon(second.set_data("b")).await.unwrap();
    let updated = soon(views.next()).await.unwrap();
    assert_eq!((updated.epoch, ids(&updated)), (view.epoch, vec!["z", "b"]));
    server.expire(a.session_id().0);
    let alone = soon(views.next()).await.unwrap();
    assert!(alone.epoch > view.epoch && ids(&alone) == ["b"]);
    assert!(matches!(updated.changes(&alone).as_slice(), [Change::Left(left)] if left.id == "z"));
    server.expire(c.session_id().0);
    let over = soon(views.next()).await.unwrap_err();
    assert!(matches!(&over, Error::Client(error) if error.is_session_end()), "{over}");
}

#[tokio::test]
async fn views_survive_broken_connections() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let group = Group::new(&a, "/g");
    let mut views = soon(group.views()).await.unwrap();
    let mut epoch = soon(views.next()).await.unwrap().epoch;
    for round in 0..5 {
        let member = Group::new(&b, "/g").join(&format!("m{round}"), ()).start();
        soon(member.created()).await.unwrap();
        server.cut_all();
        let seen = soon(async {
            loop {
                let view = views.next().await.unwrap();
                assert!(view.epoch > epoch, "views go forward");
                epoch = view.epoch;
                if view.member(&format!("m{round}")).is_some() {
                    return view;
                }
            }
        })
        .await;
        assert!(!seen.members.is_empty());
        soon(member.close()).await.unwrap();
    }
}

#[tokio::test]
async fn services_are_found_chosen_and_avoided() {
    let server = Server::start().await;
    let (a, b, c) = (client(&server).await, client(&server).await, client(&server).await);
    let discovery = |client: &Client| Discovery::new(client, "/services");
    let instance = |id: &str| ServiceInstance::new("web", id, "10.0.0.7", 80);
    let mut one = soon(discovery(&a).register(instance("1"), Rejoin::Never)).await.unwrap();
    let two = soon(discovery(&b).register(instance("2"), Rejoin::Never)).await.unwrap();
    assert_eq!(soon(discovery(&c).services()).await.unwrap(), ["web"]);
    let written: serde_json::Value = serde_json::from_slice(&server.data("/services/web/1").unwrap()).unwrap();
    assert_eq!((&written["serviceType"], &written["sslPort"]), (&"DYNAMIC".into(), &serde_json::Value::Null));
    let down = DownPolicy { errors: 2, within: Duration::from_secs(3_600) };
    let mut provider = soon(discovery(&c).provider("web", Strategy::RoundRobin, down)).await.unwrap();
    let pick = |provider: &corral_recipes::ServiceProvider| provider.instance().unwrap().map(|instance| instance.id);
    let picked: Vec<Option<String>> = (0..3).map(|_| pick(&provider)).collect();
    assert_eq!(picked, ["1", "2", "1"].map(|id| Some(id.to_owned())));
    // One that fails is left alone.
    let failing = instance("1");
    provider.note_error(&failing);
    provider.note_error(&failing);
    assert_eq!([pick(&provider), pick(&provider)], [Some("2".to_owned()), Some("2".to_owned())]);
    // A disabled one too.
    let mut changed = one.instance().clone();
    changed.enabled = false;
    changed.uri_spec = Some(UriSpec::parse("{scheme}://{address}:{port}"));
    soon(one.update(changed)).await.unwrap();
    soon(provider.changed()).await.unwrap();
    let all = provider.instances().unwrap();
    assert_eq!(all[0].uri().as_deref(), Some("http://10.0.0.7:80"));
    assert!(!all[0].enabled && all[1].enabled);
    let renamed = soon(one.update(instance("3"))).await.unwrap_err();
    assert!(matches!(renamed, Error::BadArgument { .. }), "{renamed}");
    soon(two.unregister()).await.unwrap();
    soon(async {
        while provider.instance().unwrap().is_some() {
            provider.changed().await.unwrap();
        }
    })
    .await;
    // A static one stays without its session.
    let mut fixed = instance("fixed");
    fixed.service_type = ServiceType::Static;
    let registered = soon(discovery(&b).register(fixed.clone(), Rejoin::Never)).await.unwrap();
    server.expire(b.session_id().0);
    drop(registered);
    assert_eq!(soon(discovery(&c).instances("web")).await.unwrap()[1], fixed);
    server.expire(c.session_id().0);
    soon(async { while provider.changed().await.is_ok() {} }).await;
    provider.instance().unwrap_err();
}

#[tokio::test]
async fn the_instance_in_use_least_often_is_given_and_a_use_ends_when_it_is_dropped() {
    let server = Server::start().await;
    let a = client(&server).await;
    let discovery = Discovery::new(&a, "/services");
    let instance = |id: &str| ServiceInstance::new("web", id, "10.0.0.7", 80);
    let one = soon(discovery.register(instance("1"), Rejoin::Never)).await.unwrap();
    let _two = soon(discovery.register(instance("2"), Rejoin::Never)).await.unwrap();
    let provider = soon(discovery.provider("web", Strategy::LeastUsed, DownPolicy::default())).await.unwrap();
    let begin = || provider.begin_use().unwrap().expect("there are instances");
    let (first, second) = (begin(), begin());
    assert_eq!((first.id.as_str(), second.id.as_str()), ("1", "2"));
    drop(second);
    let third = begin();
    assert_eq!(third.id, "2");
    // Clones count together.
    assert_eq!(provider.clone().begin_use().unwrap().expect("one of them").id, "1");
    soon(one.unregister()).await.unwrap();
    let mut provider = provider;
    soon(provider.changed()).await.unwrap();
    assert_eq!(provider.begin_use().unwrap().expect("the other").id, "2");
}

#[tokio::test]
async fn a_kept_znode_outlives_its_session_and_goes_when_it_is_closed() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let ttl = Duration::from_secs(3_600);
    let mortal = TtlNode::start(&a, "/jobs/1", "40 %", ttl, Rejoin::Never).unwrap();
    let immortal = TtlNode::start(&a, "/jobs/2", "50 %", ttl, new_session(&server)).unwrap();
    soon(mortal.created()).await.unwrap();
    soon(immortal.created()).await.unwrap();
    let begun = match &*mortal.kept().borrow() {
        Kept::Until(until) => *until,
        other => panic!("{other:?}"),
    };
    assert!(begun > tokio::time::Instant::now() + ttl / 2);
    server.expire(a.session_id().0);
    // Nobody asks before the next touch; closing does.
    let ended = soon(mortal.close()).await.unwrap_err();
    assert!(matches!(ended, Error::Client(ref error) if error.is_session_end()), "{ended}");
    assert_eq!(server.children("/jobs/1"), ["touch"]);
    assert_eq!(server.data("/jobs/1").as_deref(), Some(b"40 %".as_slice()));
    // What is there is kept as it is, whoever created it.
    let again = TtlNode::start(&b, "/jobs/1", "0 %", ttl, Rejoin::Never).unwrap();
    soon(again.created()).await.unwrap();
    assert_eq!(server.data("/jobs/1").as_deref(), Some(b"40 %".as_slice()));
    soon(again.close()).await.unwrap();
    assert!(!server.exists("/jobs/1"));
    // Dropped, it stays for its time.
    let dropped = TtlNode::start(&b, "/jobs/3", "x", ttl, Rejoin::Never).unwrap();
    soon(dropped.created()).await.unwrap();
    let mut kept = dropped.kept();
    drop(dropped);
    soon(kept.wait_for(|kept| matches!(kept, Kept::Ended(_)))).await.unwrap();
    assert!(server.exists("/jobs/3"));
    let wrong = TtlNode::start(&b, "/jobs/4", "x", Duration::ZERO, Rejoin::Never).unwrap_err();
    assert!(matches!(wrong, Error::BadArgument { .. }), "{wrong}");
    drop(immortal);
}

/// The time for which a znode is kept is that of the keeper who asks for the longest.
#[tokio::test]
async fn a_kept_znode_stays_as_long_as_each_of_its_keepers_was_promised() {
    let server = Server::start().await;
    let (a, b) = (client(&server).await, client(&server).await);
    let keep = async |client: &Client, s| {
        let node = TtlNode::start(client, "/job", "x", Duration::from_secs(s), Rejoin::Never).unwrap();
        soon(node.created()).await.unwrap();
        node
    };
    let ttl_ms = || server.state.lock().ttls_ms["/job/touch"];
    let short = keep(&a, 600).await;
    assert_eq!(ttl_ms(), 600_000);
    let long = keep(&b, 3_600).await;
    assert_eq!((ttl_ms(), server.data("/job/touch").as_deref()), (3_600_000, Some(b"3600000".as_slice())));
    let shorter = keep(&a, 60).await;
    assert_eq!((ttl_ms(), server.data("/job/touch").as_deref()), (3_600_000, Some(b"3600000".as_slice())));
    assert_eq!(server.data("/job").as_deref(), Some(b"x".as_slice()));
    drop((short, long, shorter));
    // Of Curator's nobody knows.
    server.set("/job/touch", "10.0.0.7");
    let _sure = keep(&b, 7_200).await;
    assert_eq!(ttl_ms(), 7_200_000);
    no_violations(&server);
}

/// It is touched again and again, in one session after the other, and created anew when somebody deletes it.
#[tokio::test]
async fn a_kept_znode_is_touched_and_comes_back() {
    let server = Server::start().await;
    let a = client(&server).await;
    let node = TtlNode::start(&a, "/here", "x", Duration::from_millis(60), new_session(&server)).unwrap();
    soon(node.created()).await.unwrap();
    let mut kept = node.kept();
    let until = async |kept: &mut tokio::sync::watch::Receiver<Kept>, after| {
        let later = kept.wait_for(|kept| matches!(kept, Kept::Until(until) if Some(*until) > after));
        match &*soon(later).await.unwrap() {
            Kept::Until(until) => Some(*until),
            other => panic!("{other:?}"),
        }
    };
    let first = until(&mut kept, None).await;
    server.delete("/here/touch");
    server.delete("/here");
    let second = until(&mut kept, first).await;
    // It was under way already, or it came anew.
    until(&mut kept, second).await;
    assert_eq!(
        (server.children("/here"), server.data("/here").as_deref()),
        (vec!["touch".to_owned()], Some(b"x".as_slice()))
    );
    let third = until(&mut kept, second).await;
    server.expire(a.session_id().0);
    let fourth = until(&mut kept, third).await;
    until(&mut kept, fourth).await;
    soon(node.close()).await.unwrap();
    assert!(!server.exists("/here"));
}

/// Who has which item, as told to the members; an item that two have is noticed at once.
type Owners = Arc<Mutex<BTreeMap<String, (String, u64)>>>;

/// A member that works as it is told, until its session or the test ends.
fn work(partitioner: Partitioner, name: &'static str, owners: &Owners) -> tokio::task::JoinHandle<()> {
    let owners = owners.clone();
    tokio::spawn(async move {
        let mut partition = partitioner.join();
        while let Some(event) = partition.next().await {
            match event {
                PartitionEvent::Acquired { item, hold } => {
                    let mut owners = owners.lock();
                    let token = hold.token().value();
                    if let Some((_, before)) = owners.insert(item, (name.to_owned(), token)) {
                        assert!(token > before, "tokens grow");
                    }
                }
                PartitionEvent::Release { item } => partition.give_back(&item).await.unwrap(),
                PartitionEvent::Lost { .. } => {}
                PartitionEvent::Ended(_) => return,
            }
        }
    })
}

#[tokio::test]
async fn items_are_divided_evenly_and_move_as_little_as_needed() {
    let server = Server::start().await;
    let clients = [client(&server).await, client(&server).await, client(&server).await];
    let owners = Owners::default();
    let items: Vec<String> = (0..6).map(|n| format!("i{n}")).collect();
    let join = |at: usize, name: &'static str| {
        let partitioner = Partitioner::new(&clients[at], "/parts", name, items.clone()).unwrap();
        let partitioner = partitioner.settle(Duration::from_millis(20)).when_suspended(WhenSuspended::UntilDeadline);
        work(partitioner, name, &owners)
    };
    let of = |name: &str| -> BTreeSet<String> {
        let owners = owners.lock();
        owners.iter().filter(|(_, (owner, _))| owner == name).map(|(item, _)| item.clone()).collect()
    };
    let a = join(0, "a");
    until("a has all", || of("a").len() == 6).await;
    let b = join(1, "b");
    until("b has half", || of("b").len() == 3 && of("a").len() == 3).await;
    let before = (of("a"), of("b"));
    let c = join(2, "c");
    until("all have two", || of("a").len() == 2 && of("b").len() == 2 && of("c").len() == 2).await;
    assert!(of("a").is_subset(&before.0) && of("b").is_subset(&before.1), "only what went to c has moved");
    let (kept_a, kept_c) = (of("a"), of("c"));
    // One dies, and so does the elected one with it or without: only its items move.
    server.expire(clients[1].session_id().0);
    until("a and c have half each", || of("a").len() == 3 && of("c").len() == 3).await;
    assert!(kept_a.is_subset(&of("a")) && kept_c.is_subset(&of("c")));
    server.expire(clients[0].session_id().0);
    until("c has all", || of("c").len() == 6).await;
    for worker in [a, b] {
        soon(worker).await.unwrap();
    }
    c.abort();
    until("c's items are free", || {
        items.iter().all(|item| server.children(&format!("/parts/locks/{item}")).is_empty())
    })
    .await;
}

/// A server that has too much to do says so for a while; what contends for as long as its session lives goes on.
#[tokio::test]
async fn what_lasts_as_long_as_its_session_outlasts_refusals_for_the_moment() {
    let server = Server::start().await;
    let a = client(&server).await;
    let refuse = |path: &str| server.state.lock().refuse_reads = Some((path.to_owned(), ErrorCode::ThrottledOp, 3));
    let left = || server.state.lock().refuse_reads.as_ref().map_or(0, |(_, _, left)| *left);
    refuse("/election");
    let latch = Election::new(&a, "/election").latch("a");
    assert!(soon(latch.lead()).await.unwrap().is_valid());
    assert_eq!(left(), 0, "it was refused");
    refuse("/hosts");
    let here = Presence::new(&a, "/hosts/a").start();
    soon(here.created()).await.unwrap();
    assert_eq!(left(), 0, "it was refused");
    // Its name is another's, who is waited for.
    refuse("/hosts");
    let after = Presence::new(&client(&server).await, "/hosts/a").start();
    until("it was refused", || left() == 0).await;
    soon(here.close()).await.unwrap();
    soon(after.created()).await.unwrap();
    refuse("/parts/assignment");
    let mut partition = Partitioner::new(&a, "/parts", "a", ["x"]).unwrap().settle(Duration::ZERO).join();
    let event = soon(partition.next()).await;
    assert!(matches!(event, Some(PartitionEvent::Acquired { .. })), "{event:?}");
    assert_eq!(left(), 0, "it was refused");
    no_violations(&server);
}

/// The loop of the documentation, which gives each item back when it is asked for and reads no further before that is
/// heard: with more items than events and answers have room for.
#[tokio::test]
async fn hundreds_of_items_move_at_once() {
    const ITEMS: usize = 300;
    let server = Server::start().await;
    let clients = [client(&server).await, client(&server).await];
    let owners = Owners::default();
    let items: Vec<String> = (0..ITEMS).map(|n| format!("i{n:03}")).collect();
    let join = |at: usize, name: &'static str| {
        let partitioner = Partitioner::new(&clients[at], "/parts", name, items.clone()).unwrap();
        let partitioner = partitioner.settle(Duration::from_millis(20)).when_suspended(WhenSuspended::UntilDeadline);
        work(partitioner, name, &owners)
    };
    let count = |name: &str| owners.lock().values().filter(|(owner, _)| owner == name).count();
    let _a = join(0, "a");
    until("a has all", || count("a") == ITEMS).await;
    let _b = join(1, "b");
    until("b has half", || count("b") == ITEMS / 2).await;
    no_violations(&server);
}

#[tokio::test]
async fn a_partition_that_is_closed_has_released_everything() {
    let server = Server::start().await;
    let a = client(&server).await;
    let partitioner = Partitioner::new(&a, "/parts", "a", ["x"]).unwrap().settle(Duration::ZERO);
    let mut partition = partitioner.join();
    assert!(matches!(soon(partition.next()).await, Some(PartitionEvent::Acquired { .. })));
    soon(partition.close()).await.unwrap();
    for directory in ["/parts/locks/x", "/parts/members", "/parts/election"] {
        assert_eq!(server.children(directory), Vec::<String>::new(), "{directory}");
    }
    let bad = Partitioner::new(&a, "/parts", "a", ["x/y"]).unwrap_err();
    assert!(matches!(bad, Error::BadArgument { .. }), "{bad}");
}
