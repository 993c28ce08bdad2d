// Curator's part in one lock and one election, beside Corral's own and kazoo's.
//
// usage: java -cp ... Mixed.java HOSTS count PATH COUNTER ROUNDS      (counts under an InterProcessMutex)
//        java -cp ... Mixed.java HOSTS mixed PATH COUNTER ROUNDS      (the same, with a driver that knows kazoo's names)
//        java -cp ... Mixed.java HOSTS lead PATH COUNTER ROUNDS       (counts while a LeaderLatch leads)
//
// Counting is a read and a write of any version: only the lock keeps two clients apart.

import java.nio.charset.StandardCharsets;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.StandardLockInternalsDriver;
import org.apache.curator.retry.ExponentialBackoffRetry;

public class Mixed {
    private static final long PATIENCE_S = 90;

    /** Sorts by the number that the server appended, whatever stands before it. */
    private static class ByNumber extends StandardLockInternalsDriver {
        @Override
        public String fixForSorting(String name, String lockName) {
            return name.substring(Math.max(0, name.length() - 10));
        }
    }

    private static void count(CuratorFramework client, String counter) throws Exception {
        client.sync().forPath(counter);
        int n = Integer.parseInt(new String(client.getData().forPath(counter), StandardCharsets.UTF_8));
        client.setData().forPath(counter, Integer.toString(n + 1).getBytes(StandardCharsets.UTF_8));
    }

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    public static void main(String[] args) throws Exception {
        String path = args[2];
        String counter = args[3];
        int rounds = Integer.parseInt(args[4]);
        try (CuratorFramework client = CuratorFrameworkFactory.newClient(args[0], 20_000, 20_000,
                new ExponentialBackoffRetry(100, 10))) {
            client.start();
            check(client.blockUntilConnected((int) PATIENCE_S, TimeUnit.SECONDS), "connected");
            System.out.println("ready");
            System.in.read();
            for (int i = 0; i < rounds; i++) {
                if (args[1].equals("lead")) {
                    try (LeaderLatch latch = new LeaderLatch(client, path, "curator")) {
                        latch.start();
                        check(latch.await(PATIENCE_S, TimeUnit.SECONDS), "leads");
                        count(client, counter);
                    }
                } else {
                    InterProcessMutex mutex = args[1].equals("mixed")
                            ? new InterProcessMutex(client, path, new ByNumber())
                            : new InterProcessMutex(client, path);
                    check(mutex.acquire(PATIENCE_S, TimeUnit.SECONDS), "acquired");
                    try {
                        count(client, counter);
                    } finally {
                        mutex.release();
                    }
                }
            }
        }
        System.out.println("done");
    }
}
