// graphile-worker with what its documentation advises for throughput: a local queue and batched completion.
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { measure } from "./measure.mjs";

const connectionString = process.env.DATABASE_URL;
const logger = new Logger(() => () => {});
const utils = await makeWorkerUtils({ connectionString, logger });
await utils.migrate();

await measure({
  async fill(n) {
    for (let left = n; left > 0; left -= 1000) {
      await utils.addJobs(Array.from({ length: Math.min(left, 1000) }, () => ({ identifier: "probe", payload: {} })));
    }
  },
  async start(concurrency, onJob) {
    const runner = await run({
      connectionString,
      logger,
      noHandleSignals: true,
      taskList: { probe: async (payload) => onJob(payload.i) },
      preset: {
        worker: {
          concurrentJobs: concurrency,
          maxPoolSize: 10,
          pollInterval: 1000,
          // While it is idle a local queue would only add to the wait.
          ...(process.argv[2] === "drain" ? { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } : {}),
        },
      },
    });
    return () => runner.stop();
  },
  send: (i) => utils.addJob("probe", { i }),
});
