"""kazoo over TLS, and with SASL.

usage: secure.py tls HOST CA CERTIFICATE KEY SUBJECT   whoever shows the certificate is x509:SUBJECT
       secure.py sasl HOST USER PASSWORD               DIGEST-MD5; a wrong password must be refused
"""

import sys
import threading

from kazoo.client import KazooClient, KazooState, KeeperState
from kazoo.exceptions import NoAuthError
from kazoo.retry import KazooRetry
from kazoo.security import ACL, Id

PATIENCE = 60


def connect(hosts, **options):
    client = KazooClient(
        hosts=hosts, timeout=15, connection_retry=KazooRetry(max_tries=-1, delay=0.05, max_delay=1), **options
    )
    client.start(timeout=PATIENCE)
    return client


def use(client, scheme, name, other):
    """What is given to one identity is used by it, and by nobody else."""
    acl = [ACL(31, Id("auth", ""))]
    assert client.create("/mine", b"x" * 500_000, acl=acl) == "/mine"
    assert client.get_acls("/mine")[0] == [ACL(31, Id(scheme, name))], client.get_acls("/mine")
    assert len(client.get("/mine")[0]) == 500_000
    try:
        other.get("/mine")
    except NoAuthError:
        pass
    else:
        raise AssertionError("another identity read it")
    events = []
    client.exists("/watched", watch=events.append)
    other.create("/watched", b"")
    client.sync("/watched")
    assert client.exists("/watched") and len(events) == 1, events
    client.delete("/mine")


def tls(hosts, ca, certificate, key, subject):
    options = dict(use_ssl=True, ca=ca, verify_certs=True)
    client = connect(hosts, certfile=certificate, keyfile=key, **options)
    other = connect(hosts, **options)
    use(client, "x509", subject, other)
    client.stop()
    other.stop()


def sasl(hosts, user, password):
    def options(password):
        return dict(sasl_options={"mechanism": "DIGEST-MD5", "username": user, "password": password})

    client = connect(hosts, **options(password))
    other = connect(hosts)
    use(client, "sasl", user, other)
    client.stop()
    other.stop()

    # kazoo says that it is connected before it proves anything: what counts is that it does not stay so.
    lost, why = threading.Event(), []
    wrong = KazooClient(hosts=hosts, **options("not " + password))

    def listen(state):
        if state == KazooState.LOST:
            why.append(wrong.client_state)
            lost.set()

    wrong.add_listener(listen)
    wrong.start_async()
    assert lost.wait(PATIENCE), "a wrong password was taken"
    assert why[0] == KeeperState.AUTH_FAILED, why
    wrong.stop()


if __name__ == "__main__":
    {"tls": tls, "sasl": sasl}[sys.argv[1]](*sys.argv[2:])
    print("ok")
