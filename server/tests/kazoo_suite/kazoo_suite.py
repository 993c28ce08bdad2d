"""kazoo's own test-suite against servers of our choice: a pytest plugin.

The suite starts its servers itself, through `kazoo.testing.common`. Here its `ZookeeperCluster` is replaced by one of
`corral serve` processes, or of real ZooKeeper's, with the same methods: run, stop, reset, destroy, get_logs, addresses.
Nothing else of the suite is touched.

    PYTHONPATH=server/tests/kazoo_suite CORRAL=target/debug/corral python -m pytest -p kazoo_suite --pyargs kazoo.tests

  SUITE_SERVER         corral (default) or zookeeper
  CORRAL               the program `corral`; default: the one in PATH
  ZOOKEEPER_CLASSPATH  real ZooKeeper; default: that of Debian's package
  SUITE_SHARD          "1/3": only the first third of the test classes. Classes share no server
  SUITE_ONLY           names of tests, one a line: only these
  SUITE_RESULTS        a file that gets a JSON line for each test

Tests in `exceptions.tsv` that name this kind of server are not run; the file says why.
"""

import datetime
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import types

import pytest

# kazoo.testing.common imports two libraries for the Java keystores that it writes. Here certificates are PEM files, and one of
# the two wants a C compiler and Python's headers.
for unused in ("OpenSSL", "jks"):
    sys.modules.setdefault(unused, types.ModuleType(unused))
# The oldest version that kazoo's harness would treat like ours. The tests themselves ask the server.
os.environ.setdefault("ZOOKEEPER_VERSION", "3.8.0")

import kazoo.testing.common  # noqa: E402
import kazoo.testing.harness  # noqa: E402

SERVER = os.environ.get("SUITE_SERVER", "corral")
# Debian's zookeeper.jar names most of what it needs itself, but not all that its TLS port does.
JARS = ["zookeeper", "netty-codec", "netty-resolver", "netty-transport-native-unix-common", "slf4j-simple"]
CLASSPATH = os.environ.get("ZOOKEEPER_CLASSPATH") or ":".join("/usr/share/java/%s.jar" % jar for jar in JARS)
FOLDER = pathlib.Path(__file__).parent
HOST = "127.0.0.1"
# How long servers may take to find a leader on a busy machine. Nothing is judged by it but "never".
PATIENCE = 60
POLL = 0.02
# Each server has five ports, and the suite expects them in tens.
PORTS_A_SERVER = 5
PORT_STEP = 10
# Below those that the system gives to clients: a server that is stopped must find its port free when it starts again.
PORTS = (23000, 32000)
# What pytest ended with.
STATUS = pytest.StashKey[int]()


# ------------------------------------------------------------------------------------------------------- certificates


def certificates():
    """PEM texts: an authority, a server's key and certificate for localhost, a client's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.timezone.utc)
    authority_key = ec.generate_private_key(ec.SECP256R1())

    def common_name(name):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    def certificate(name, key, authority):
        builder = (
            x509.CertificateBuilder()
            .subject_name(common_name(name))
            .issuer_name(common_name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            names = [x509.DNSName(name), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def private(key):
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    server_key, client_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    return {
        "ca_cert_pem": certificate("authority", authority_key, True),
        "server_key_pem": private(server_key),
        "server_cert_pem": certificate("localhost", server_key, False),
        "client_key_pem": private(client_key),
        "client_cert_pem": certificate("client", client_key, False),
    }


# ------------------------------------------------------------------------------------------------------------ servers


class Server(kazoo.testing.common.ManagedZooKeeper):
    """One server process. `stop` and `run` keep its data; `reset` and `destroy` do not."""

    process = None

    @property
    def working(self):
        return pathlib.Path(self.working_path)

    def run(self):
        if self.running:
            return
        data = self.working / "data"
        data.mkdir(parents=True, exist_ok=True)
        (data / "myid").write_text(str(self.server_info.server_id))
        (self.working / "ca_cert.pem").write_bytes(self.ssl_configuration["ca_cert_pem"])
        # Both servers want a key and its certificate in one file.
        both = self.ssl_configuration["server_key_pem"] + self.ssl_configuration["server_cert_pem"]
        (self.working / "server.pem").write_bytes(both)
        lines = [
            "dataDir=%s" % data,
            "clientPort=%d" % self.client_port,
            "maxClientCnxns=0",
            "initLimit=20",
            "syncLimit=4",
        ]
        for server in [self.server_info, *self.peers]:
            peer = (server.server_id, HOST, server.leader_port, server.election_port, server.peer_type)
            lines.append("server.%d=%s:%d:%d:%s" % peer)
        command = self.prepare(lines)
        (self.working / "zoo.cfg").write_text("\n".join(lines) + "\n")
        with open(self.working / "server.log", "a") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._running = True

    def destroy(self):
        # As the last act of a test class; a process that does not stop must not outlive it.
        try:
            self.stop()
        finally:
            if self.process and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.working, ignore_errors=True)

    def get_logs(self, num_lines=100):
        try:
            return (self.working / "server.log").read_text(errors="replace").splitlines(True)[-num_lines:]
        except OSError:
            return []

    def serves(self):
        """Whether it has a leader."""
        if self.process.poll() is not None:
            raise RuntimeError("server ended with %s:\n%s" % (self.process.returncode, "".join(self.get_logs())))
        try:
            with socket.create_connection((HOST, self.client_port), timeout=5) as connection:
                connection.sendall(b"srvr")
                answer = b""
                while part := connection.recv(4096):
                    answer += part
        except OSError:
            return False
        return b"Mode: " in answer

    def properties(self):
        """What kazoo wants to give a Java server as system properties, as keys of its configuration."""
        prefix = "-Dzookeeper."
        return [p[len(prefix) :] for p in self.java_system_properties if p.startswith(prefix)]


class CorralServer(Server):
    """`corral serve`. Times are shorter than kazoo's own, so that elections take less of the suite's time."""

    def prepare(self, lines):
        # Membership changes are not available: Corral refuses to start with this key.
        lines += [e for e in self.configuration_entries if not e.startswith("reconfigEnabled=")]
        lines += self.properties()
        lines += [
            "clientPortAddress=" + HOST,
            "tickTime=500",
            "syncTimeout=500",
            "maxSessionTimeout=40000",
            "readonlymode.enabled=true",
            "secureClientPort=%d" % self.secure_client_port,
            "ssl.keyStore.location=%s" % (self.working / "server.pem"),
            "ssl.trustStore.location=%s" % (self.working / "ca_cert.pem"),
        ]
        if self.jaas_config:
            users = self.working / "jaas.conf"
            users.write_text(self.jaas_config)
            lines.append("saslUsersFile=%s" % users)
        program = os.environ.get("CORRAL", "corral")
        # It ends with this process, however that ends.
        return [program, "serve", "--parent", str(os.getpid()), "--config", str(self.working / "zoo.cfg")]


class ZooKeeperServer(Server):
    """The original, as kazoo's harness starts it, except for keystores."""

    def prepare(self, lines):
        lines += self.configuration_entries
        lines += [
            "tickTime=2000",
            "admin.serverPort=%d" % self.server_info.admin_port,
            "secureClientPort=%d" % self.secure_client_port,
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
            "authProvider.1=org.apache.zookeeper.server.auth.SASLAuthenticationProvider",
            "ssl.keyStore.location=%s" % (self.working / "server.pem"),
            "ssl.trustStore.location=%s" % (self.working / "ca_cert.pem"),
        ]
        jaas = self.working / "jaas.conf"
        jaas.write_text(self.jaas_config or "")
        return [
            "java",
            "-cp",
            CLASSPATH,
            "-Xmx256m",
            "-Dfile.encoding=UTF-8",
            "-Dreadonlymode.enabled=true",
            "-Djava.awt.headless=true",
            "-Djava.security.auth.login.config=%s" % jaas,
            *self.java_system_properties,
            "org.apache.zookeeper.server.quorum.QuorumPeerMain",
            str(self.working / "zoo.cfg"),
        ]


KINDS = {"corral": CorralServer, "zookeeper": ZooKeeperServer}


class Cluster(kazoo.testing.common.ZookeeperCluster):
    """The servers of a test class, started by its first test and removed after its last."""

    # What kazoo's own constructor makes its servers of is not wanted.
    def __init__(self, size=3, observer_start_id=-1, port_offset=None, install_path=None, classpath=None, **more):
        self._ssl_configuration = {}
        self.perform_ssl_certs_generation()
        base = free_ports(size)
        infos = []
        for i in range(size):
            observer = observer_start_id != -1 and i + 1 >= observer_start_id
            client, leader, election, admin, secure = (base + i * PORT_STEP + n for n in range(PORTS_A_SERVER))
            kind = "observer" if observer else "participant"
            infos.append(kazoo.testing.common.ServerInfo(i + 1, client, secure, election, leader, admin, kind))
        self._servers = [
            KINDS[SERVER](
                None,
                info,
                peers=[other for other in infos if other is not info],
                ssl_configuration=self._ssl_configuration,
                **more,
            )
            for info in infos
        ]

    def start(self):
        """Returns when every server has a leader; kazoo's own waits two seconds."""
        super_sleep, time.sleep = time.sleep, lambda seconds: None
        try:
            super().start()
        finally:
            time.sleep = super_sleep
        deadline = time.monotonic() + PATIENCE
        while not all(server.serves() for server in self):
            if time.monotonic() > deadline:
                raise RuntimeError("no leader:\n" + "".join(self.get_logs()))
            time.sleep(POLL)

    def perform_ssl_certs_generation(self):
        if not self._ssl_configuration:
            self._ssl_configuration = certificates()

    def get_ssl_client_configuration(self):
        made = self._ssl_configuration
        return {name: made[name + "_pem"] for name in ("client_key", "client_cert", "ca_cert")}


def free_ports(servers):
    """The first of as many ports, in kazoo's order, as these servers need."""

    def free(port):
        with socket.socket() as candidate:
            try:
                candidate.bind((HOST, port))
            except OSError:
                return False
            return True

    bases = list(range(*PORTS, PORT_STEP * servers))
    # Other clusters look for their ports at the same time.
    random.shuffle(bases)
    for base in bases:
        if all(free(base + i * PORT_STEP + n) for i in range(servers) for n in range(PORTS_A_SERVER)):
            return base
    raise RuntimeError("no free ports from %d to %d" % PORTS)


kazoo.testing.harness.ZookeeperCluster = Cluster


# ------------------------------------------------------------------------------------------------- choice and results


def exceptions():
    """Tests that are not run against this kind of server, and why."""
    found = {}
    for line in (FOLDER / "exceptions.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            test, servers, reason = line.split("\t")
            if SERVER in servers.split(","):
                found[test] = reason
    return found


def name(item):
    """`test_client.py::TestClient::test_create`, wherever kazoo is installed."""
    return item.nodeid.rsplit("/", 1)[-1]


def pytest_collection_modifyitems(config, items):
    shard, shards = (int(n) for n in os.environ.get("SUITE_SHARD", "1/1").split("/"))
    classes = sorted({name(item).rsplit("::", 1)[0] for item in items})
    mine = {c for i, c in enumerate(classes) if i % shards == shard - 1}
    items[:] = [item for item in items if name(item).rsplit("::", 1)[0] in mine]
    if only := os.environ.get("SUITE_ONLY"):
        items[:] = [item for item in items if name(item) in only.split("\n")]
    left_out = exceptions()
    for item in items:
        if name(item) in left_out:
            item.add_marker(pytest.mark.skip(reason="listed: " + left_out[name(item)]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    results = os.environ.get("SUITE_RESULTS")
    # Set-up and tear-down count when they decide: a failure, or a test that is skipped before it begins.
    if not results or (report.when != "call" and report.outcome == "passed"):
        return
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    line = {"test": name(item), "outcome": report.outcome, "seconds": round(report.duration, 2), "why": reason}
    with open(results, "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process: a client that a failed test left behind would look for its servers for ever."""
    cluster = kazoo.testing.harness.CLUSTER
    if cluster is not None:
        cluster.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(config.stash.get(STATUS, 2))
