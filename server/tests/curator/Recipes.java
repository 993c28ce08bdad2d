// Curator's recipes against one ensemble: what Java programs of other people's do. Prints one line for each part that worked.
//
// usage: java -cp ... Recipes.java HOSTS

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.CuratorCacheListener;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.retry.ExponentialBackoffRetry;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.data.Stat;

public class Recipes {
    private static final long PATIENCE_S = 60;
    private static final int ROUNDS = 25;

    private static CuratorFramework client(String hosts) throws Exception {
        CuratorFramework client =
                CuratorFrameworkFactory.newClient(hosts, 15_000, 15_000, new ExponentialBackoffRetry(100, 10));
        client.start();
        check(client.blockUntilConnected((int) PATIENCE_S, TimeUnit.SECONDS), "connected");
        return client;
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private interface Condition {
        boolean holds() throws Exception;
    }

    private static void eventually(String what, Condition condition) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(PATIENCE_S);
        while (!condition.holds()) {
            check(System.nanoTime() < end, "never: " + what);
            Thread.sleep(20);
        }
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    public static void main(String[] args) throws Exception {
        try (CuratorFramework one = client(args[0]); CuratorFramework two = client(args[0])) {
            nodes(one);
            transaction(one);
            mutex(one, two);
            semaphore(one, two);
            leader(one, two);
            counter(one, two);
            barrier(one, two);
            cache(one, two);
            persistentNode(one, two);
        }
        System.out.println("done");
    }

    private static void nodes(CuratorFramework client) throws Exception {
        Stat stat = new Stat();
        client.create().creatingParentContainersIfNeeded().forPath("/nodes/a/b", bytes("x"));
        check(Arrays.equals(client.getData().storingStatIn(stat).forPath("/nodes/a/b"), bytes("x")), "data");
        check(stat.getVersion() == 0 && stat.getEphemeralOwner() == 0, "stat");
        check(client.setData().withVersion(0).forPath("/nodes/a/b", bytes("y")).getVersion() == 1, "version");
        String protectedPath = client.create().withProtection().withMode(CreateMode.EPHEMERAL_SEQUENTIAL)
                .forPath("/nodes/p-");
        check(client.checkExists().forPath(protectedPath).getEphemeralOwner()
                == client.getZookeeperClient().getZooKeeper().getSessionId(), "owner");
        client.create().withTtl(60_000).withMode(CreateMode.PERSISTENT_WITH_TTL).forPath("/nodes/ttl", bytes("x"));
        try {
            client.delete().withVersion(9).forPath("/nodes/a/b");
            check(false, "a wrong version");
        } catch (KeeperException.BadVersionException expected) {
            // As it must be.
        }
        client.delete().deletingChildrenIfNeeded().forPath("/nodes");
        check(client.checkExists().forPath("/nodes") == null, "deleted");
        System.out.println("nodes");
    }

    private static void transaction(CuratorFramework client) throws Exception {
        Collection<CuratorTransactionResult> results = client.transaction().forOperations(
                client.transactionOp().create().forPath("/tx", bytes("1")),
                client.transactionOp().setData().withVersion(0).forPath("/tx", bytes("2")),
                client.transactionOp().check().withVersion(1).forPath("/tx"));
        check(results.size() == 3, "three results");
        try {
            client.transaction().forOperations(
                    client.transactionOp().setData().forPath("/tx", bytes("3")),
                    client.transactionOp().create().forPath("/tx"));
            check(false, "a transaction that must fail");
        } catch (KeeperException.NodeExistsException expected) {
            check(Arrays.equals(client.getData().forPath("/tx"), bytes("2")), "nothing happened");
        }
        System.out.println("transaction");
    }

    /** Two clients count in a znode, each reading and writing back under the lock. */
    private static void mutex(CuratorFramework one, CuratorFramework two) throws Exception {
        one.create().forPath("/count", bytes("0"));
        both(one, two, client -> {
            InterProcessMutex mutex = new InterProcessMutex(client, "/mutex");
            for (int i = 0; i < ROUNDS; i++) {
                check(mutex.acquire(PATIENCE_S, TimeUnit.SECONDS), "acquired");
                try {
                    client.sync().forPath("/count");
                    int n = Integer.parseInt(new String(client.getData().forPath("/count"), StandardCharsets.UTF_8));
                    client.setData().forPath("/count", bytes(Integer.toString(n + 1)));
                } finally {
                    mutex.release();
                }
            }
        });
        check(new String(one.getData().forPath("/count"), StandardCharsets.UTF_8).equals("" + 2 * ROUNDS), "sum");
        System.out.println("mutex");
    }

    private static void semaphore(CuratorFramework one, CuratorFramework two) throws Exception {
        Lease first = new InterProcessSemaphoreV2(one, "/semaphore", 2).acquire(PATIENCE_S, TimeUnit.SECONDS);
        Lease second = new InterProcessSemaphoreV2(two, "/semaphore", 2).acquire(PATIENCE_S, TimeUnit.SECONDS);
        check(first != null && second != null, "two leases");
        check(new InterProcessSemaphoreV2(one, "/semaphore", 2).acquire(100, TimeUnit.MILLISECONDS) == null, "no third");
        first.close();
        Lease third = new InterProcessSemaphoreV2(two, "/semaphore", 2).acquire(PATIENCE_S, TimeUnit.SECONDS);
        check(third != null, "a lease that was given back");
        System.out.println("semaphore");
    }

    private static void leader(CuratorFramework one, CuratorFramework two) throws Exception {
        LeaderLatch first = new LeaderLatch(one, "/leader", "one");
        first.start();
        check(first.await(PATIENCE_S, TimeUnit.SECONDS), "the only one leads");
        LeaderLatch second = new LeaderLatch(two, "/leader", "two");
        second.start();
        eventually("both take part", () -> second.getParticipants().size() == 2);
        check(!second.hasLeadership() && second.getLeader().getId().equals("one"), "one leader");
        first.close();
        check(second.await(PATIENCE_S, TimeUnit.SECONDS), "the next one leads");
        second.close();
        System.out.println("leader");
    }

    private static void counter(CuratorFramework one, CuratorFramework two) throws Exception {
        both(one, two, client -> {
            DistributedAtomicLong counter =
                    new DistributedAtomicLong(client, "/atomic", new ExponentialBackoffRetry(10, 29));
            for (int i = 0; i < ROUNDS; i++) {
                eventually("added", () -> counter.increment().succeeded());
            }
        });
        one.sync().forPath("/atomic");
        check(new DistributedAtomicLong(one, "/atomic", new ExponentialBackoffRetry(10, 29)).get().postValue()
                == 2 * ROUNDS, "sum");
        System.out.println("counter");
    }

    private static void barrier(CuratorFramework one, CuratorFramework two) throws Exception {
        AtomicInteger inside = new AtomicInteger();
        both(one, two, client -> {
            DistributedDoubleBarrier barrier = new DistributedDoubleBarrier(client, "/barrier", 2);
            check(barrier.enter(PATIENCE_S, TimeUnit.SECONDS), "entered");
            inside.incrementAndGet();
            check(barrier.leave(PATIENCE_S, TimeUnit.SECONDS), "left");
            check(inside.get() == 2, "nobody leaves before all are in");
        });
        System.out.println("barrier");
    }

    /** Persistent recursive watches keep a copy of a subtree. */
    private static void cache(CuratorFramework one, CuratorFramework two) throws Exception {
        List<String> deleted = new ArrayList<>();
        try (CuratorCache cache = CuratorCache.build(two, "/cache")) {
            CountDownLatch initialized = new CountDownLatch(1);
            cache.listenable().addListener(CuratorCacheListener.builder()
                    .forInitialized(initialized::countDown)
                    .forDeletes(old -> {
                        synchronized (deleted) {
                            deleted.add(old.getPath());
                        }
                    })
                    .build());
            cache.start();
            check(initialized.await(PATIENCE_S, TimeUnit.SECONDS), "initialized");
            one.create().creatingParentsIfNeeded().forPath("/cache/a/b", bytes("1"));
            one.setData().forPath("/cache/a/b", bytes("2"));
            one.create().forPath("/cache/c", bytes("3"));
            // The cache reads what it is told of; what is gone by then it never had.
            eventually("the other znode is copied", () -> cache.get("/cache/c").isPresent());
            one.delete().forPath("/cache/c");
            eventually("the copy is complete", () -> cache.size() == 3
                    && cache.get("/cache/a/b").map(data -> Arrays.equals(data.getData(), bytes("2"))).orElse(false));
            eventually("the deletion is seen", () -> {
                synchronized (deleted) {
                    return deleted.equals(List.of("/cache/c"));
                }
            });
        }
        System.out.println("cache");
    }

    private static void persistentNode(CuratorFramework one, CuratorFramework two) throws Exception {
        try (PersistentNode node = new PersistentNode(one, CreateMode.EPHEMERAL, false, "/present", bytes("x"))) {
            node.start();
            check(node.waitForInitialCreate(PATIENCE_S, TimeUnit.SECONDS), "created");
            two.sync().forPath("/present");
            long first = two.checkExists().forPath("/present").getCzxid();
            two.delete().forPath("/present");
            eventually("it is made again", () -> {
                Stat stat = two.checkExists().forPath("/present");
                return stat != null && stat.getCzxid() > first;
            });
        }
        System.out.println("persistent node");
    }

    private interface Work {
        void with(CuratorFramework client) throws Exception;
    }

    private static void both(CuratorFramework one, CuratorFramework two, Work work) throws Exception {
        List<Throwable> failures = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (CuratorFramework client : List.of(one, two)) {
            Thread thread = new Thread(() -> {
                try {
                    work.with(client);
                } catch (Throwable failure) {
                    synchronized (failures) {
                        failures.add(failure);
                    }
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) {
            thread.join();
        }
        if (!failures.isEmpty()) {
            throw new AssertionError(failures.get(0));
        }
    }
}
