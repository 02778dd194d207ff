// pg-boss with large batches, fetched without a pause while they come full, and woken by NOTIFY.
import { PgBoss } from "pg-boss";
import { measure } from "./measure.mjs";

const boss = new PgBoss({ connectionString: process.env.DATABASE_URL, max: 10, useListenNotify: true });
boss.on("error", (error) => {
  throw error;
});
await boss.start();
await boss.createQueue("probe", { notify: true });

await measure({
  async fill(n) {
    for (let left = n; left > 0; left -= 1000) {
      await boss.insert("probe", Array.from({ length: Math.min(left, 1000) }, () => ({ data: {} })));
    }
  },
  async start(concurrency, onJob) {
    const batchSize = process.argv[2] === "drain" ? 500 : 1;
    const options = { batchSize, burstWhenBatchFull: batchSize > 1, pollingIntervalSeconds: 0.5 };
    for (let i = 0; i < (batchSize > 1 ? 4 : concurrency); i++) {
      await boss.work("probe", options, async (jobs) => jobs.forEach((job) => onJob(job.data.i)));
    }
    return () => boss.stop({ graceful: true });
  },
  send: (i) => boss.send("probe", { i }),
});
