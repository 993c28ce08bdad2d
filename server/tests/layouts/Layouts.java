// Curator's part where its recipes and Corral's share a layout: queues with ids, shards of queues, znodes with a time to live.
//
// usage: java -cp ... Layouts.java HOSTS
//
// Takes what the other side put and puts something for it, says "did", goes on at the next line, and says "done".

import java.nio.charset.StandardCharsets;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.framework.recipes.queue.DistributedIdQueue;
import org.apache.curator.framework.recipes.queue.DistributedQueue;
import org.apache.curator.framework.recipes.queue.QueueBuilder;
import org.apache.curator.framework.recipes.queue.QueueConsumer;
import org.apache.curator.framework.recipes.queue.QueueSerializer;
import org.apache.curator.framework.recipes.queue.QueueSharder;
import org.apache.curator.framework.recipes.queue.QueueSharderPolicies;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.ExponentialBackoffRetry;

public class Layouts {
    private static final int PATIENCE_S = 90;
    private static final int TTL_MS = 60_000;

    private static final QueueSerializer<String> TEXT = new QueueSerializer<String>() {
        @Override
        public byte[] serialize(String item) {
            return item.getBytes(StandardCharsets.UTF_8);
        }

        @Override
        public String deserialize(byte[] bytes) {
            return new String(bytes, StandardCharsets.UTF_8);
        }
    };

    private static void check(boolean holds, String what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    private static void ids(CuratorFramework client) throws Exception {
        try (DistributedIdQueue<String> queue = QueueBuilder.builder(client, null, TEXT, "/ids/to-curator").buildIdQueue()) {
            queue.start();
            int removed = queue.remove("corral-2");
            check(removed == 1, "removed by id: " + removed);
        }
        LinkedBlockingQueue<String> items = new LinkedBlockingQueue<>();
        QueueConsumer<String> consumer = new QueueConsumer<String>() {
            @Override
            public void consumeMessage(String item) {
                items.add(item);
            }

            @Override
            public void stateChanged(CuratorFramework changed, ConnectionState state) {
            }
        };
        try (DistributedIdQueue<String> queue =
                QueueBuilder.builder(client, consumer, TEXT, "/ids/to-curator").buildIdQueue()) {
            queue.start();
            String item = items.poll(PATIENCE_S, TimeUnit.SECONDS);
            check("the first of corral".equals(item), "consumed: " + item);
        }
        try (DistributedIdQueue<String> queue = QueueBuilder.builder(client, null, TEXT, "/ids/to-corral").buildIdQueue()) {
            queue.start();
            queue.put("the first of curator", "curator-1");
            queue.put("the second of curator", "curator-2");
            check(queue.flushPuts(PATIENCE_S, TimeUnit.SECONDS), "the puts are flushed");
        }
    }

    private static void shards(CuratorFramework client) throws Exception {
        QueueSharderPolicies policies = QueueSharderPolicies.builder().newQueueThreshold(1_000).build();
        try (QueueSharder<String, DistributedQueue<String>> sharder = new QueueSharder<>(client,
                (CuratorFramework of, String path) -> QueueBuilder.builder(of, null, TEXT, path).buildQueue(),
                "/shards", "/shards-leader", policies)) {
            sharder.start();
            check(sharder.getShardQty() == 1, "shards found: " + sharder.getShardQty());
            sharder.getQueue().put("of curator");
            check(sharder.getQueue().flushPuts(PATIENCE_S, TimeUnit.SECONDS), "the put is flushed");
        }
    }

    private static PersistentTtlNode kept(CuratorFramework client, String path) throws Exception {
        PersistentTtlNode node = new PersistentTtlNode(client, path, TTL_MS, TEXT.serialize("of curator"));
        node.start();
        check(node.waitForInitialCreate(PATIENCE_S, TimeUnit.SECONDS), "created: " + path);
        return node;
    }

    public static void main(String[] args) throws Exception {
        try (CuratorFramework client = CuratorFrameworkFactory.newClient(args[0], 20_000, 20_000,
                new ExponentialBackoffRetry(100, 10))) {
            client.start();
            check(client.blockUntilConnected(PATIENCE_S, TimeUnit.SECONDS), "connected");
            ids(client);
            shards(client);
            try (PersistentTtlNode own = kept(client, "/kept/by-curator");
                    PersistentTtlNode theirs = kept(client, "/kept/by-corral")) {
                System.out.println("did");
                System.in.read();
            }
        }
        System.out.println("done");
    }
}
