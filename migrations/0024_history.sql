-- History kept shorter for a tenant or a kind, and the erasure of a person from jobs.
--
-- Days of history are dropped whole (0004_jobs.sql): that stays the upper bound. A rule here lets rows go sooner, in batches.
--
-- A job may be enqueued about a subject (reeve.enqueue_about). What is kept of the subject is a blind index: HMAC-SHA256
-- under a key that no login can read, so that whoever reads the table learns neither who it is nor, by guessing, whether
-- somebody is in it. It stands in a narrow table, and reeve.jobs and reeve.enqueue are as they were.
--   app        enqueue_about
--   ops        keep_history, erase_subject
--   scheduler  prune_history, prune_subjects
SET LOCAL ROLE reeve_owner;

-- '*' stands for every tenant, or every kind. Of several rules that meet a row the shortest holds.
CREATE TABLE reeve.history_rules (
  tenant_id text COLLATE "C" NOT NULL,
  kind      text COLLATE "C" NOT NULL,
  keep_days integer NOT NULL CHECK (keep_days BETWEEN 0 AND 3650),
  PRIMARY KEY (tenant_id, kind)
);

CREATE TABLE reeve.subject_keys (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  inner_pad bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
  outer_pad bytea NOT NULL CHECK (octet_length(outer_pad) = 64)
);
GRANT SELECT, INSERT ON reeve.subject_keys TO reeve_dispatch;

CREATE TABLE reeve.job_subjects (
  tenant_id    text COLLATE "C" NOT NULL,
  subject_hash bytea NOT NULL CHECK (octet_length(subject_hash) = 32),
  job_id       uuid NOT NULL,
  PRIMARY KEY (tenant_id, subject_hash, job_id)
);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['history_rules', 'job_subjects'] LOOP
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY dispatch ON reeve.%I TO reeve_dispatch USING (true) WITH CHECK (true)', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.%I TO reeve_dispatch', t);
  END LOOP;
END $$;
CREATE POLICY ops_read ON reeve.history_rules FOR SELECT TO reeve_ops USING (true);
GRANT SELECT ON reeve.history_rules TO reeve_ops;

SET LOCAL ROLE reeve_dispatch;

DO $$
DECLARE
  key bytea := sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
BEGIN
  INSERT INTO reeve.subject_keys (inner_pad, outer_pad) VALUES (reeve.padded_key(key, 54), reeve.padded_key(key, 92));
END $$;

-- The tenant is part of what is hashed: one person in two tenants is two values.
CREATE FUNCTION reeve.subject_hash(tenant text, subject text) RETURNS bytea LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF length(subject) NOT BETWEEN 1 AND 500 OR subject IS NULL THEN
    RAISE EXCEPTION 'reeve: a subject has 1 to 500 characters' USING ERRCODE = 'RV005';
  END IF;
  RETURN (SELECT sha256(k.outer_pad || sha256(k.inner_pad || reeve.audit_bytes('reeve/subject/v1'::text)
            || reeve.audit_bytes(tenant) || reeve.audit_bytes(subject))) FROM reeve.subject_keys k);
END $$;

-- reeve.enqueue, of a job about a subject: the app's own id of a person, say. A job whose dedupe key is taken is about
-- this subject as well from then on.
CREATE FUNCTION reeve.enqueue_about(subject text, kind text, payload jsonb DEFAULT '{}', dedupe_key text DEFAULT NULL,
                                    run_at timestamptz DEFAULT NULL, priority integer DEFAULT NULL,
                                    traceparent text DEFAULT NULL) RETURNS uuid
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.caller_tenant();
  job uuid := reeve.enqueue(kind, payload, dedupe_key, run_at, priority, traceparent, tenant);
BEGIN
  INSERT INTO reeve.job_subjects (tenant_id, subject_hash, job_id) VALUES (tenant, reeve.subject_hash(tenant, subject), job)
  ON CONFLICT DO NOTHING;
  RETURN job;
END $$;
GRANT EXECUTE ON FUNCTION reeve.enqueue_about(text, text, jsonb, text, timestamptz, integer, text) TO reeve_app;

-- Takes a person out of a tenant's jobs: what waits is cancelled, and of parked and finished jobs payload, error, dedupe key
-- and trace go. A running job is asked to stop and keeps its payload until it has: `running` counts those, and the
-- operator calls again when they are over. The audit entry does not name the subject.
CREATE FUNCTION reeve.erase_subject(tenant text, subject text, actor text, reason text)
  RETURNS TABLE (cancelled bigint, redacted bigint, running bigint) LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  wanted bytea := reeve.subject_hash(tenant, subject);
  ids uuid[];
  parked bigint;
BEGIN
  IF coalesce(btrim(reason), '') = '' THEN
    RAISE EXCEPTION 'reeve: an erasure needs a reason' USING ERRCODE = 'RV005';
  END IF;
  ids := ARRAY(SELECT s.job_id FROM reeve.job_subjects s WHERE s.tenant_id = tenant AND s.subject_hash = wanted);
  -- All that is live stays as it is until this commits; what settled before is history by the time that is looked at.
  PERFORM FROM reeve.jobs j WHERE j.id = ANY (ids) AND j.tenant_id = tenant ORDER BY j.id FOR UPDATE;
  UPDATE reeve.jobs j SET cancel_reason = 'erasure' WHERE j.id = ANY (ids) AND j.tenant_id = tenant AND j.state = 'running';
  GET DIAGNOSTICS running = ROW_COUNT;
  WITH gone AS (
    DELETE FROM reeve.jobs j WHERE j.id = ANY (ids) AND j.tenant_id = tenant
      AND j.state IN ('scheduled', 'available', 'retryable') RETURNING j.*)
  INSERT INTO reeve.job_history (id, tenant_id, kind, queue, region, state, priority, attempt, attempts_max, rescues,
                                 run_at, created_at, attempted_at, worker, payload, last_error)
  SELECT g.id, g.tenant_id, g.kind, g.queue, g.region, 'cancelled', g.priority, g.attempt, g.attempts_max, g.rescues,
         g.run_at, g.created_at, g.attempted_at, g.worker, '{}', 'erasure' FROM gone g;
  GET DIAGNOSTICS cancelled = ROW_COUNT;
  UPDATE reeve.jobs j SET payload = '{}', last_error = NULL, unique_key = NULL, traceparent = NULL
  WHERE j.id = ANY (ids) AND j.tenant_id = tenant AND j.state IN ('dead', 'quarantined')
    AND (j.payload <> '{}' OR num_nonnulls(j.last_error, j.unique_key, j.traceparent) > 0);
  GET DIAGNOSTICS parked = ROW_COUNT;
  UPDATE reeve.job_history h SET payload = '{}', last_error = CASE h.last_error WHEN 'erasure' THEN 'erasure' END,
         unique_key = NULL, traceparent = NULL
  WHERE h.tenant_id = tenant AND h.id = ANY (ids)
    AND (h.payload <> '{}' OR num_nonnulls(nullif(h.last_error, 'erasure'), h.unique_key, h.traceparent) > 0);
  GET DIAGNOSTICS redacted = ROW_COUNT;
  redacted := redacted + parked;
  UPDATE reeve.job_attempts a SET error = NULL WHERE a.tenant_id = tenant AND a.job_id = ANY (ids);
  PERFORM reeve.audit_append(tenant, actor, 'subject.erased', 'tenant:' || tenant,
    format('%s jobs cancelled, %s redacted, %s still running: %s', cancelled, redacted, running, reason), '{}', NULL, NULL, NULL);
  RETURN NEXT;
END $$;
GRANT EXECUTE ON FUNCTION reeve.erase_subject(text, text, text, text) TO reeve_ops;

-- Sets a rule, or with NULL takes it away. '*' is every tenant or every kind.
CREATE FUNCTION reeve.keep_history(tenant text, kind text, keep_days integer, actor text, reason text) RETURNS void
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
  IF keep_days NOT BETWEEN 0 AND 3650 THEN
    RAISE EXCEPTION 'reeve: history is kept 0 to 3650 days' USING ERRCODE = 'RV005';
  END IF;
  IF tenant <> '*' THEN
    PERFORM reeve.require_tenant(tenant);
  END IF;
  IF kind <> '*' AND NOT EXISTS (SELECT FROM reeve.kinds k WHERE k.name = kind) THEN
    RAISE EXCEPTION 'reeve: unknown kind "%"', kind USING ERRCODE = 'RV004';
  END IF;
  DELETE FROM reeve.history_rules r WHERE r.tenant_id = tenant AND r.kind = keep_history.kind;
  IF keep_days IS NOT NULL THEN
    INSERT INTO reeve.history_rules (tenant_id, kind, keep_days) VALUES (tenant, kind, keep_days);
  END IF;
  PERFORM reeve.audit_append(CASE tenant WHEN '*' THEN '-' ELSE tenant END, actor, 'history.rule_changed', 'kind:' || kind,
                             reason, ARRAY['keep_days'], NULL, NULL, NULL);
END $$;
GRANT EXECUTE ON FUNCTION reeve.keep_history(text, text, integer, text, text) TO reeve_ops;

-- Deletes at most n rows past the shortest rule that meets them. Returns how many.
CREATE FUNCTION reeve.prune_history(n integer) RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH gone AS (
    DELETE FROM reeve.job_history h USING (
      SELECT x.tableoid AS part, x.ctid AS place FROM reeve.history_rules r JOIN reeve.job_history x
        ON (r.tenant_id = '*' OR x.tenant_id = r.tenant_id) AND (r.kind = '*' OR x.kind = r.kind)
           AND x.finished_at < now() - make_interval(days => r.keep_days)
      LIMIT n) old
    WHERE h.tableoid = old.part AND h.ctid = old.place
    RETURNING 1)
  SELECT count(*) FROM gone
$$;

-- Deletes at most n subjects of jobs that are gone from history too. Those of the last day are not looked at.
CREATE FUNCTION reeve.prune_subjects(n integer) RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  WITH gone AS (
    DELETE FROM reeve.job_subjects s WHERE s.ctid = ANY (ARRAY(
      SELECT x.ctid FROM reeve.job_subjects x
      WHERE x.job_id < (lpad(to_hex((extract(epoch FROM now() - interval '1 day') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
        AND NOT EXISTS (SELECT FROM reeve.jobs j WHERE j.id = x.job_id)
        AND NOT EXISTS (SELECT FROM reeve.job_history h WHERE h.tenant_id = x.tenant_id AND h.id = x.job_id) LIMIT n))
    RETURNING 1)
  SELECT count(*) FROM gone
$$;
GRANT EXECUTE ON FUNCTION reeve.prune_history(integer), reeve.prune_subjects(integer) TO reeve_scheduler;

RESET ROLE;
