// Fills a broker with the topics of the golden directories. Run by `make` beside this file:
//   Write.java BROKER clean|more|killed
// Keys, values and timestamps are fixed; producer ids, topic ids and LogAppendTime are the broker's.
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Random;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArraySerializer;

public class Write {
    static final long START_MS = 1_700_000_000_000L;
    static String broker;
    static final Random random = new Random(7);

    public static void main(String[] args) throws Exception {
        broker = args[0];
        switch (args[1]) {
            case "clean" -> clean();
            case "more" -> more();
            case "killed" -> killed();
            default -> throw new IllegalArgumentException(args[1]);
        }
    }

    // What a clean stop leaves behind, before the broker's second start.
    static void clean() throws Exception {
        for (String codec : new String[] {"none", "gzip", "snappy", "lz4", "zstd"}) {
            String topic = "codec-" + codec;
            create(topic, Map.of("internal.segment.bytes", "16384"));
            try (var producer = producer(Map.of("compression.type", codec))) {
                for (int batch = 0; batch < 24; batch++) batch(producer, topic, batch, 1 + batch % 13, 150);
            }
        }
        create("append-time", Map.of("message.timestamp.type", "LogAppendTime", "internal.segment.bytes", "16384"));
        try (var producer = producer(Map.of("enable.idempotence", "false", "compression.type", "lz4"))) {
            for (int batch = 0; batch < 12; batch++) batch(producer, "append-time", batch, 10, 300);
        }
        create("shapes", Map.of());
        shapes();
        create("empty", Map.of());
        create("transactions", Map.of("internal.segment.bytes", "8192"));
        transactions();
        create("compacted", Map.of("cleanup.policy", "compact", "internal.segment.bytes", "8192",
            "min.cleanable.dirty.ratio", "0.01", "min.compaction.lag.ms", "0"));
        try (var producer = producer(Map.of())) {
            for (int batch = 0; batch < 40; batch++) keyed(producer, batch);
        }
        create("trimmed", Map.of("internal.segment.bytes", "8192"));
        try (var producer = producer(Map.of())) {
            for (int batch = 0; batch < 20; batch++) batch(producer, "trimmed", batch, 5, 200);
        }
        try (Admin admin = admin()) {
            admin.deleteRecords(Map.of(new TopicPartition("trimmed", 0), RecordsToDelete.beforeOffset(37))).all().get();
        }
        create("epochs", Map.of());
        more();
    }

    // The same partition under a later leader epoch.
    static void more() throws Exception {
        try (var producer = producer(Map.of())) {
            for (int batch = 0; batch < 4; batch++) batch(producer, "epochs", batch, 3, 100);
        }
    }

    // What a killed broker leaves behind; ends while one transaction is open.
    static void killed() throws Exception {
        create("busy", Map.of("internal.segment.bytes", "16384"));
        try (var producer = producer(Map.of())) {
            for (int batch = 0; batch < 36; batch++) batch(producer, "busy", batch, 1 + batch % 7, 250);
        }
        create("preallocated", Map.of("internal.segment.bytes", "16384", "preallocate", "true"));
        try (var producer = producer(Map.of("compression.type", "zstd"))) {
            for (int batch = 0; batch < 35; batch++) batch(producer, "preallocated", batch, 8, 150);
        }
        create("open-transaction", Map.of());
        var producer = producer(Map.of("transactional.id", "open"));
        producer.initTransactions();
        producer.beginTransaction();
        batch(producer, "open-transaction", 0, 5, 100);
        producer.commitTransaction();
        producer.beginTransaction();
        batch(producer, "open-transaction", 1, 5, 100);
        System.out.flush();
        Runtime.getRuntime().halt(0); // close() would abort the transaction
    }

    static void transactions() throws Exception {
        var first = producer(Map.of("transactional.id", "first", "compression.type", "snappy"));
        var second = producer(Map.of("transactional.id", "second"));
        var plain = producer(Map.of());
        first.initTransactions();
        second.initTransactions();
        for (int round = 0; round < 10; round++) {
            first.beginTransaction();
            second.beginTransaction();
            batch(first, "transactions", round, 4, 120);
            batch(second, "transactions", round, 3, 120);
            batch(plain, "transactions", round, 2, 120);
            batch(first, "transactions", round, 2, 120);
            if (round % 3 == 1) first.abortTransaction(); else first.commitTransaction();
            if (round % 3 == 2) second.abortTransaction(); else second.commitTransaction();
        }
        first.close();
        second.close();
        plain.close();
    }

    // Null and empty keys and values, headers, the largest batch worth keeping in a repository.
    static void shapes() throws Exception {
        try (var producer = producer(Map.of())) {
            var headers = new RecordHeaders();
            headers.add("trace", "0af7651916cd43dd".getBytes(StandardCharsets.UTF_8)).add("empty", new byte[0]).add("null", null);
            byte[] value = value(40);
            byte[][] keys = {null, new byte[0], "k".getBytes(StandardCharsets.UTF_8)};
            byte[][] values = {null, new byte[0], value};
            long time = START_MS;
            for (byte[] key : keys) {
                for (byte[] v : values) {
                    producer.send(new ProducerRecord<>("shapes", 0, time++, key, v));
                    producer.send(new ProducerRecord<>("shapes", 0, time++, key, v, headers));
                    producer.send(new ProducerRecord<>("shapes", 0, time - 5000, key, v));
                    producer.flush();
                }
            }
            producer.send(new ProducerRecord<>("shapes", 0, 0L, null, value(40_000)));
            producer.flush();
            producer.send(new ProducerRecord<>("shapes", 0, 0L, null, value(1)));
        }
    }

    // Each batch holds keys that stay and keys that come back; every fourth one holds tombstones.
    static void keyed(KafkaProducer<byte[], byte[]> producer, int batch) throws Exception {
        for (int i = 0; i < 6; i++) {
            boolean stays = (batch + i) % 3 == 0;
            String key = stays ? "stays-" + batch + "-" + i : "key-" + (batch * 5 + i * 7) % 23;
            byte[] value = batch % 4 == 3 && i % 2 == 0 ? null : value(180);
            byte[] bytes = key.getBytes(StandardCharsets.UTF_8);
            producer.send(new ProducerRecord<>("compacted", 0, START_MS + batch * 100L + i, bytes, value));
        }
        producer.flush();
    }

    static void batch(KafkaProducer<byte[], byte[]> producer, String topic, int number, int count, int length) {
        for (int i = 0; i < count; i++) {
            byte[] key = ("key-" + number + "-" + i).getBytes(StandardCharsets.UTF_8);
            producer.send(new ProducerRecord<>(topic, 0, START_MS + number * 1000L + i, key, value(length)));
        }
        producer.flush();
    }

    // Half noise, half zeros: codecs have something to do and cannot make it vanish.
    static byte[] value(int length) {
        byte[] value = new byte[length];
        byte[] noise = new byte[length / 2];
        random.nextBytes(noise);
        System.arraycopy(noise, 0, value, 0, noise.length);
        return value;
    }

    static void create(String topic, Map<String, String> configs) throws Exception {
        Map<String, String> all = new java.util.HashMap<>(configs);
        all.putIfAbsent("retention.ms", "-1");
        all.putIfAbsent("file.delete.delay.ms", "0");
        List<NewTopic> topics = new ArrayList<>();
        topics.add(new NewTopic(topic, Optional.of(1), Optional.of((short) 1)).configs(all));
        try (Admin admin = admin()) {
            admin.createTopics(topics).all().get();
        }
    }

    static Admin admin() {
        return Admin.create(Map.<String, Object>of("bootstrap.servers", broker));
    }

    static KafkaProducer<byte[], byte[]> producer(Map<String, String> settings) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", broker);
        properties.put("linger.ms", "60000"); // flush() alone ends a batch
        properties.put("batch.size", "100000");
        properties.putAll(settings);
        return new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
    }
}
