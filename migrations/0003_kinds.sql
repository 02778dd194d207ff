-- The kinds of job, as the database knows them: a copy of jobs/src/kinds.rs, refreshed by `reeve migrate`, so that SQL
-- from any language is told at once when it names a kind that nobody would run.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.kinds (
  name              text COLLATE "C" PRIMARY KEY,
  queue             text NOT NULL,
  -- 1 is served first, 4 last; within one tenant.
  priority          smallint NOT NULL CHECK (priority BETWEEN 1 AND 4),
  attempts_max      integer NOT NULL CHECK (attempts_max BETWEEN 1 AND 100),
  payload_bytes_max integer NOT NULL CHECK (payload_bytes_max BETWEEN 2 AND 65536),
  runs_when_closing boolean NOT NULL,
  -- False for kinds that only Reeve itself makes.
  app_may_enqueue   boolean NOT NULL
);
GRANT SELECT ON reeve.kinds TO reeve_dispatch, reeve_app, reeve_worker, reeve_scheduler, reeve_ops;

RESET ROLE;
