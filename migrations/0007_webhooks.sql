-- Webhooks: endpoints, their signing secrets by version, events, one delivery per event and endpoint, attempts.
-- Ids are unique within a tenant, and every reference carries the tenant: a foreign key is checked without row-level
-- security, so a bare id would let one tenant's row point at another's.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.webhook_endpoints (
  tenant_id       text COLLATE "C" NOT NULL,
  id              uuid NOT NULL,
  url             text NOT NULL CHECK (length(url) BETWEEN 8 AND 2048),
  -- Empty: every type.
  event_types     text[] NOT NULL DEFAULT '{}',
  state           text NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
  disabled_reason text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id)
);

-- A secret is only ever stored sealed; a plaintext column does not exist.
CREATE TABLE reeve.webhook_secrets (
  tenant_id   text COLLATE "C" NOT NULL,
  endpoint_id uuid NOT NULL,
  version     integer NOT NULL CHECK (version >= 1),
  sealed      bytea NOT NULL,
  -- NULL: in force until rotated. Else it signs beside its successor until then.
  expires_at  timestamptz,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, endpoint_id, version),
  FOREIGN KEY (tenant_id, endpoint_id) REFERENCES reeve.webhook_endpoints ON DELETE CASCADE
);

CREATE TABLE reeve.webhook_events (
  tenant_id  text COLLATE "C" NOT NULL,
  -- The webhook-id of every delivery: the receiver's duplicate key.
  id         text COLLATE "C" NOT NULL CHECK (id ~ '^msg_[A-Za-z0-9]{1,60}$'),
  event_type text NOT NULL CHECK (event_type ~ '^[a-z0-9_]+(\.[a-z0-9_]+)*$' AND length(event_type) <= 100),
  -- The exact bytes that are signed and sent, made once.
  body       text NOT NULL CHECK (octet_length(body) <= 262144),
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, id)
);
CREATE INDEX webhook_events_age ON reeve.webhook_events (tenant_id, created_at);

CREATE TABLE reeve.webhook_deliveries (
  tenant_id    text COLLATE "C" NOT NULL,
  id           uuid NOT NULL,
  event_id     text COLLATE "C" NOT NULL,
  endpoint_id  uuid NOT NULL,
  state        text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'failed', 'cancelled')),
  attempts     integer NOT NULL DEFAULT 0,
  last_status  integer,
  created_at   timestamptz NOT NULL DEFAULT now(),
  ended_at     timestamptz,
  PRIMARY KEY (tenant_id, id),
  UNIQUE (tenant_id, event_id, endpoint_id),
  FOREIGN KEY (tenant_id, event_id) REFERENCES reeve.webhook_events ON DELETE CASCADE,
  FOREIGN KEY (tenant_id, endpoint_id) REFERENCES reeve.webhook_endpoints ON DELETE CASCADE
);
CREATE INDEX webhook_deliveries_endpoint ON reeve.webhook_deliveries (tenant_id, endpoint_id, created_at);
CREATE INDEX webhook_deliveries_ended ON reeve.webhook_deliveries (tenant_id, ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE reeve.webhook_attempts (
  tenant_id      text COLLATE "C" NOT NULL,
  delivery_id    uuid NOT NULL,
  job_id         uuid NOT NULL,
  attempt        integer NOT NULL,
  at             timestamptz NOT NULL,
  duration_ms    integer NOT NULL,
  -- delivered, or the class of what went wrong: a closed and a filtered port read the same.
  result         text NOT NULL CHECK (result IN ('delivered', 'refused_status', 'redirected', 'timed_out', 'unreachable',
                                                 'address_refused', 'invalid_endpoint')),
  status         integer,
  response_bytes integer NOT NULL DEFAULT 0,
  secret_version integer,
  PRIMARY KEY (tenant_id, delivery_id, job_id, attempt),
  FOREIGN KEY (tenant_id, delivery_id) REFERENCES reeve.webhook_deliveries ON DELETE CASCADE
);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['webhook_endpoints', 'webhook_secrets', 'webhook_events', 'webhook_deliveries', 'webhook_attempts']
  LOOP
    EXECUTE format('ALTER TABLE reeve.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE reeve.%I FORCE ROW LEVEL SECURITY', t);
    -- RESTRICTIVE, so that no policy added later can open the door by OR.
    EXECUTE format('CREATE POLICY tenant_guard ON reeve.%I AS RESTRICTIVE TO reeve_app, reeve_worker
                    USING (tenant_id = (SELECT reeve.tenant())) WITH CHECK (tenant_id = (SELECT reeve.tenant()))', t);
    EXECUTE format('CREATE POLICY tenant_rows ON reeve.%I TO reeve_app, reeve_worker USING (true) WITH CHECK (true)', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.%I TO reeve_worker', t);
    -- Secrets are the worker's alone; of attempts the app sees less, below.
    IF t NOT IN ('webhook_secrets', 'webhook_attempts') THEN
      EXECUTE format('GRANT SELECT ON reeve.%I TO reeve_app', t);
    END IF;
  END LOOP;
END $$;
-- Not result and duration_ms: together they would tell a closed port from a filtered one, and so map our network.
GRANT SELECT (tenant_id, delivery_id, job_id, attempt, at, status, response_bytes, secret_version)
  ON reeve.webhook_attempts TO reeve_app;

-- emit() runs as reeve_dispatch in the app's transaction: it reads endpoints and writes events and deliveries.
CREATE POLICY dispatch ON reeve.webhook_endpoints FOR SELECT TO reeve_dispatch USING (true);
CREATE POLICY dispatch ON reeve.webhook_events FOR INSERT TO reeve_dispatch WITH CHECK (true);
CREATE POLICY dispatch ON reeve.webhook_deliveries TO reeve_dispatch USING (true) WITH CHECK (true);
GRANT SELECT ON reeve.webhook_endpoints TO reeve_dispatch;
GRANT INSERT ON reeve.webhook_events TO reeve_dispatch;
GRANT SELECT, INSERT ON reeve.webhook_deliveries TO reeve_dispatch;

SET LOCAL ROLE reeve_dispatch;

-- Emits one event in the caller's transaction: the event, one delivery per endpoint that wants it, one job per delivery.
-- Returns the webhook-id. The body is fixed here, so that every attempt sends and signs the same bytes.
CREATE FUNCTION reeve.emit(event_type text, payload jsonb, traceparent text DEFAULT NULL) RETURNS text
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants := reeve.require_tenant(reeve.caller_tenant());
  k reeve.kinds := reeve.require_kind('webhook.deliver', '{}', t);
  event text := 'msg_' || replace(reeve.new_id()::text, '-', '');
  body text;
  target record;
  delivery uuid;
BEGIN
  IF event_type IS NULL OR event_type !~ '^[a-z0-9_]+(\.[a-z0-9_]+)*$' OR length(event_type) > 100 THEN
    RAISE EXCEPTION 'reeve: "%" is no event type', left(event_type, 100) USING ERRCODE = 'RV005',
      HINT = 'Lower-case words of letters, digits and _, joined by dots, at most 100 characters: contact.updated.';
  END IF;
  IF jsonb_typeof(payload) IS DISTINCT FROM 'object' THEN
    RAISE EXCEPTION 'reeve: the payload of an event must be a JSON object' USING ERRCODE = 'RV005';
  END IF;
  body := jsonb_build_object('type', event_type, 'data', payload, 'timestamp',
    to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text;
  IF octet_length(body) > 262144 THEN
    RAISE EXCEPTION 'reeve: the event has % bytes, more than the limit of 262144', octet_length(body) USING ERRCODE = 'RV005',
      HINT = 'Send ids, and let the receiver ask for the rest.';
  END IF;
  INSERT INTO reeve.webhook_events (tenant_id, id, event_type, body) VALUES (t.id, event, event_type, body);
  FOR target IN
    SELECT e.id FROM reeve.webhook_endpoints e
    WHERE e.tenant_id = t.id AND e.state = 'enabled' AND (e.event_types = '{}' OR emit.event_type = ANY (e.event_types))
    ORDER BY e.id
  LOOP
    delivery := reeve.new_id();
    INSERT INTO reeve.webhook_deliveries (tenant_id, id, event_id, endpoint_id) VALUES (t.id, delivery, event, target.id);
    PERFORM reeve.insert_job(t, k, jsonb_build_object('delivery_id', delivery), 'delivery:' || delivery, NULL, NULL, traceparent);
  END LOOP;
  RETURN event;
END $$;
GRANT EXECUTE ON FUNCTION reeve.emit(text, jsonb, text) TO reeve_app;

-- Told to a worker that found no such delivery under its tenant: is it another tenant's (an attack or a bug: refuse,
-- audit, quarantine) or nobody's (pruned: nothing left to do)? Says no more than that.
CREATE FUNCTION reeve.delivery_is_foreign(delivery uuid) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT EXISTS (SELECT FROM reeve.webhook_deliveries d WHERE d.id = delivery AND d.tenant_id <> reeve.tenant())
$$;
GRANT EXECUTE ON FUNCTION reeve.delivery_is_foreign(uuid) TO reeve_worker;

RESET ROLE;
