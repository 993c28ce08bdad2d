"""kazoo's ordinary work against an ensemble: what an existing script of somebody's does.

usage: ordinary.py HOSTS PHASE
  basic      one pass over the client and its recipes
  failover   counts with a lock and a queue until standard input closes, then checks the sums; the session must be the
             same one at the end
"""

import sys
import threading

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    ConnectionLoss,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    SessionExpiredError,
)
from kazoo.retry import KazooRetry
from kazoo.security import make_digest_acl

PATIENCE = 60


def connect(hosts, timeout=15):
    client = KazooClient(
        hosts=hosts,
        timeout=timeout,
        connection_retry=KazooRetry(max_tries=-1, delay=0.05, max_delay=1),
        command_retry=KazooRetry(max_tries=-1, delay=0.05, max_delay=1, deadline=PATIENCE),
    )
    client.start(timeout=PATIENCE)
    return client


def raises(error, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error:
        return
    raise AssertionError("%s did not raise %s" % (call, error))


def basic(hosts):
    one, two = connect(hosts), connect(hosts)

    # Nodes, data, versions.
    assert one.create("/app", b"v0") == "/app"
    raises(NodeExistsError, one.create, "/app", b"")
    raises(NoNodeError, one.get, "/missing")
    data, stat = one.get("/app")
    assert (data, stat.version, stat.numChildren) == (b"v0", 0, 0), (data, stat)
    assert one.set("/app", b"v1").version == 1
    raises(BadVersionError, one.set, "/app", b"x", 7)
    one.ensure_path("/app/deep/path")
    raises(NotEmptyError, one.delete, "/app/deep")
    one.delete("/app/deep", recursive=True)
    assert one.exists("/app/deep") is None
    path, stat = one.create("/app/with-stat", b"", include_data=True)
    assert path == "/app/with-stat" and stat.czxid == stat.mzxid
    names = [one.create("/app/s-", b"", sequence=True) for _ in range(3)]
    assert names == sorted(names) and all(len(n) == len("/app/s-0000000000") for n in names), names
    assert sorted(one.get_children("/app")) == sorted([n[5:] for n in names] + ["with-stat"])
    one.sync("/app")

    # Ephemerals are seen by others, and go with their session.
    one.create("/app/here", b"", ephemeral=True)
    two.sync("/app")
    assert two.exists("/app/here").ephemeralOwner == one.client_id[0]
    gone = threading.Event()
    two.exists("/app/here", watch=lambda event: gone.set())

    # Watches.
    changed, children = [], []
    changes = threading.Condition()

    @two.DataWatch("/app")
    def on_data(data, stat):
        with changes:
            changed.append(data)
            changes.notify_all()

    @two.ChildrenWatch("/app")
    def on_children(names):
        with changes:
            children.append(sorted(names))
            changes.notify_all()

    one.set("/app", b"v2")
    one.create("/app/new", b"")
    with changes:
        assert changes.wait_for(lambda: changed[-1] == b"v2", PATIENCE), changed
        assert changes.wait_for(lambda: "new" in children[-1], PATIENCE), children

    # Transactions are all or nothing.
    transaction = one.transaction()
    transaction.create("/app/t1", b"1")
    transaction.check("/app", 2)
    transaction.set_data("/app/t1", b"2")
    results = transaction.commit()
    assert results[0] == "/app/t1" and results[1] is True and results[2].version == 1, results
    transaction = one.transaction()
    transaction.create("/app/t2", b"")
    transaction.delete("/app/missing")
    results = transaction.commit()
    assert isinstance(results[0], RolledBackError) and isinstance(results[1], NoNodeError), results
    assert one.exists("/app/t2") is None

    # Permissions.
    one.add_auth("digest", "bob:secret")
    one.create("/app/secret", b"s", acl=[make_digest_acl("bob", "secret", all=True)])
    raises(NoAuthError, two.get, "/app/secret")
    two.add_auth("digest", "bob:secret")
    assert two.get("/app/secret")[0] == b"s"

    # Pipelined requests keep their order.
    answers = [one.set_async("/app/new", str(n).encode()) for n in range(200)]
    read = one.get_async("/app/new")
    assert [a.get(timeout=PATIENCE).version for a in answers] == list(range(1, 201))
    assert read.get(timeout=PATIENCE)[0] == b"199"

    # Recipes.
    lock_one, lock_two = one.Lock("/app/lock", "one"), two.Lock("/app/lock", "two")
    assert lock_one.acquire(timeout=PATIENCE)
    assert not lock_two.acquire(blocking=False)
    lock_one.release()
    assert lock_two.acquire(timeout=PATIENCE)
    lock_two.release()
    counter = one.Counter("/app/counter")
    counter += 3
    # Another client reads from another server: it may be behind until it asks.
    two.sync("/app/counter")
    assert two.Counter("/app/counter").value == 3
    queue = one.Queue("/app/queue")
    queue.put(b"first")
    queue.put(b"second")
    two.sync("/app/queue")
    taken = two.Queue("/app/queue")
    assert (taken.get(), taken.get()) == (b"first", b"second")
    party_one, party_two = one.Party("/app/party", "one"), two.Party("/app/party", "two")
    party_one.join()
    party_two.join()
    one.sync("/app/party")
    assert sorted(party_one) == ["one", "two"]
    led = []
    one.Election("/app/election", "one").run(lambda: led.append("one"))
    two.Election("/app/election", "two").run(lambda: led.append("two"))
    assert led == ["one", "two"]
    barrier = one.Barrier("/app/barrier")
    barrier.create()
    waiter = threading.Thread(target=lambda: two.Barrier("/app/barrier").wait(PATIENCE))
    waiter.start()
    barrier.remove()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()

    one.stop()
    assert gone.wait(PATIENCE), "the ephemeral of a closed session stays"
    two.stop()


def failover(hosts):
    client = connect(hosts)
    session = client.client_id[0]
    lost = threading.Event()
    client.add_listener(lambda state: lost.set() if state == KazooState.LOST else None)
    client.ensure_path("/count")
    client.create("/mine", b"", ephemeral=True)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    print("ready", flush=True)
    acknowledged = []
    n = 0
    while not over.is_set() or n < 200:
        name = "/count/%06d" % n
        try:
            client.create(name, str(n).encode())
            acknowledged.append(name[7:])
        except (ConnectionLoss, NodeExistsError, SessionExpiredError) as error:
            # kazoo says what it does not know: the create may have happened or not.
            print("unknown", name, type(error).__name__, flush=True)
        n += 1
    client.sync("/count")
    there = set(client.get_children("/count"))
    missing = [name for name in acknowledged if name not in there]
    assert not missing, "acknowledged and gone: %s" % missing[:5]
    assert not lost.is_set() and client.client_id[0] == session, "the session ended"
    assert client.exists("/mine").ephemeralOwner == session
    print("created", len(acknowledged), "of", n, flush=True)
    client.stop()


if __name__ == "__main__":
    {"basic": basic, "failover": failover}[sys.argv[2]](sys.argv[1])
    print("ok")
