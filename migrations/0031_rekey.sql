-- How far the re-encryption of each tenant's sealed columns has come, and which rows do not open.
--
-- Both stand in the database that has the rows they tell of, so that a batch and the place where it ended commit together:
-- a worker that dies goes on from there. The worker alone writes them, one tenant at a time. A key version whose sweeps are
-- not all done, or of which a row is in quarantine, is not to be retired.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.key_sweeps (
  tenant_id       text COLLATE "C" NOT NULL,
  -- As the catalogue names it, with its schema.
  table_name      text COLLATE "C" NOT NULL CHECK (length(table_name) BETWEEN 1 AND 200),
  -- Of the tenant's key: what all values are to be sealed under.
  target_version  integer NOT NULL CHECK (target_version > 0),
  state           text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'refused')),
  -- Why it is refused.
  reason          text CHECK (length(reason) <= 1000),
  -- The job that sweeps, and the one that made the target version.
  job_id          uuid,
  rotated_by      uuid,
  -- Who wrote last. Another that takes the sweep over changes it, and the one before finds out at its next batch.
  holder          uuid,
  pass            integer NOT NULL DEFAULT 1 CHECK (pass > 0),
  -- The key of the last row that this pass is done with. NULL: it begins.
  position        text[],
  -- Of this pass: rows that were read, and rows that were changed or are left to be. A pass without any ends the sweep.
  pass_scanned    bigint NOT NULL DEFAULT 0,
  pass_moved      bigint NOT NULL DEFAULT 0,
  -- Of all passes.
  scanned         bigint NOT NULL DEFAULT 0,
  changed         bigint NOT NULL DEFAULT 0,
  raced           bigint NOT NULL DEFAULT 0,
  quarantined     bigint NOT NULL DEFAULT 0,
  began_at        timestamptz NOT NULL DEFAULT now(),
  pass_began_at   timestamptz NOT NULL DEFAULT now(),
  updated_at      timestamptz NOT NULL DEFAULT now(),
  ended_at        timestamptz,
  PRIMARY KEY (tenant_id, table_name, target_version)
) WITH (fillfactor = 50);

-- Values that do not open: never changed, and told here until they open or are gone.
CREATE TABLE reeve.key_quarantine (
  tenant_id     text COLLATE "C" NOT NULL,
  table_name    text COLLATE "C" NOT NULL,
  column_name   text COLLATE "C" NOT NULL,
  -- As the value's place names it.
  row_key       text COLLATE "C" NOT NULL,
  -- A class: nothing of the value.
  reason        text NOT NULL CHECK (length(reason) BETWEEN 1 AND 80),
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  last_seen_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, table_name, column_name, row_key)
);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['key_sweeps', 'key_quarantine'] LOOP
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY held_guard ON reeve.%I AS RESTRICTIVE TO reeve_worker
                    USING (tenant_id = (SELECT reeve.held_tenant())) WITH CHECK (tenant_id = (SELECT reeve.held_tenant()))', t);
    EXECUTE format('CREATE POLICY tenant_rows ON reeve.%I TO reeve_worker USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY ops_read ON reeve.%I FOR SELECT TO reeve_ops USING (true)', t);
    EXECUTE format('GRANT SELECT ON reeve.%I TO reeve_ops', t);
  END LOOP;
END $$;
GRANT SELECT, INSERT, UPDATE ON reeve.key_sweeps TO reeve_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.key_quarantine TO reeve_worker;

RESET ROLE;
