// What the peers' benches share: the servers' CPU time and the order of the measurements, the same as in queue.rs.
//
//   node PEER.mjs drain|pickup N CONCURRENCY      with DATABASE_URL (an empty database) and POSTMASTER_PID
//
// A peer gives three functions. `fill(n)` enqueues n jobs in bulk; `start(onJob)` starts workers and returns what stops
// them once all that ran is stored; `send(i)` enqueues one job, told from others by its number. Prints name=value lines.
import { readFileSync, readdirSync } from "node:fs";

const TICKS_PER_SEC = 100; // Linux reports CPU time to programs in these, whatever its kernel counts in.

/** CPU microseconds of PostgreSQL so far: of its parent process, of children that ended, and of those that run. */
function serverCpu() {
  const parent = process.env.POSTMASTER_PID;
  let ticks = 0;
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    let fields;
    try {
      fields = readFileSync(`/proc/${pid}/stat`, "utf8").replace(/^.*\) /s, "").split(" ");
    } catch {
      continue; // It ended.
    }
    const [utime, stime, cutime, cstime] = fields.slice(11, 15).map(Number);
    if (pid === parent) ticks += utime + stime + cutime + cstime;
    else if (fields[1] === parent) ticks += utime + stime;
  }
  return (ticks * 1e6) / TICKS_PER_SEC;
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export async function measure({ fill, start, send }) {
  const [mode, n, concurrency] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
  if (mode === "drain") {
    await fill(n);
    let calls = 0;
    let first;
    let reached;
    const all = new Promise((done) => (reached = done));
    const cpu = [serverCpu(), process.cpuUsage()];
    const stop = await start(concurrency, () => {
      first ??= performance.now();
      if (++calls === n) reached();
    });
    await all;
    await stop();
    const spent = performance.now() - first;
    const own = process.cpuUsage(cpu[1]);
    console.log(`drain_per_s=${((n / spent) * 1e3).toFixed(0)}`);
    console.log(`cpu_us_per_job=${((serverCpu() - cpu[0] + own.user + own.system) / n).toFixed(1)}`);
  } else {
    const waiting = new Map();
    const stop = await start(concurrency, (i) => waiting.get(i)?.(performance.now()));
    await sleep(1000);
    const waits = [];
    for (let i = 0; i < n; i++) {
      const started = new Promise((done) => waiting.set(i, done));
      const begun = performance.now();
      await send(i);
      waits.push((await started) - begun);
      await sleep(((i * 12_361) % 20_000) / 1e3);
    }
    await stop();
    waits.sort((a, b) => a - b);
    const at = (share) => waits[Math.round((waits.length - 1) * share)].toFixed(2);
    console.log(`p50_ms=${at(0.5)}`);
    console.log(`p99_ms=${at(0.99)}`);
  }
  process.exit(0);
}
