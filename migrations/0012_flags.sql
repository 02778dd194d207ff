-- Flags: what is on, and what the limits are, by default, by plan and by tenant. A tenant's override comes before its
-- plan's, that before an operator's default, and that before the default which was declared with the flag.
--   app, worker   reeve.flag(name): the value for the transaction's own tenant
--   ops           declare_flag, set_flag, clear_flag, each audited; flags_in_force
--
-- Every kind has a flag `kind.<name>` (bool, true). Where it is off for a tenant, that tenant's jobs of the kind wait:
-- they are enqueued as ever, and reeve.claim passes them over until it is on again. The claim does not read these tables:
-- what is off stands in reeve.tenants.kinds_off, which the functions below and a trigger on the tenant's plan keep.
-- Where all of a queue is off, waiting jobs cost a claim nothing; where other kinds of that queue are on, each claim that
-- comes to the tenant reads past those that wait, some 1 µs a job: give a kind that is often off a queue of its own.
SET LOCAL ROLE reeve_owner;

CREATE TABLE reeve.flags (
  name          text COLLATE "C" PRIMARY KEY
                CHECK (name ~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$' AND length(name) <= 100),
  description   text NOT NULL CHECK (length(description) BETWEEN 1 AND 500),
  value_type    text COLLATE "C" NOT NULL CHECK (value_type IN ('bool', 'int', 'text')),
  default_value jsonb NOT NULL
);
GRANT SELECT, INSERT, UPDATE ON reeve.flags TO reeve_dispatch;
GRANT SELECT ON reeve.flags TO reeve_ops;

CREATE TABLE reeve.flag_overrides (
  name    text COLLATE "C" NOT NULL REFERENCES reeve.flags (name),
  level   text COLLATE "C" NOT NULL CHECK (level IN ('default', 'plan', 'tenant')),
  -- The plan or the tenant; '' for the default. Not called tenant_id because it is one in some rows only; guarded alike.
  subject text COLLATE "C" NOT NULL CHECK ((level = 'default') = (subject = '') AND length(subject) <= 100),
  value   jsonb NOT NULL,
  set_by  text NOT NULL,
  reason  text NOT NULL,
  set_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, level, subject)
);
CREATE INDEX flag_overrides_subject ON reeve.flag_overrides (subject, name);
ALTER TABLE reeve.flag_overrides ENABLE ROW LEVEL SECURITY;
ALTER TABLE reeve.flag_overrides FORCE ROW LEVEL SECURITY;
-- None for the app and the worker, and no grant: what others pay for and why they were switched off is not theirs to see.
CREATE POLICY dispatch ON reeve.flag_overrides TO reeve_dispatch USING (true) WITH CHECK (true);
CREATE POLICY ops_read ON reeve.flag_overrides FOR SELECT TO reeve_ops USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON reeve.flag_overrides TO reeve_dispatch;
GRANT SELECT ON reeve.flag_overrides TO reeve_ops;

SET LOCAL ROLE reeve_dispatch;

-- All flags as they are for one tenant, with who decided. The one place that knows the precedence.
CREATE FUNCTION reeve.flags_in_force(tenant text, plan text)
  RETURNS TABLE (name text, description text, value_type text, value jsonb, level text, subject text, set_by text,
                 reason text, set_at timestamptz)
  LANGUAGE sql STABLE
  -- A parsed body, so that it needs no search_path and is inlined: who asks for one flag pays for one.
  BEGIN ATOMIC
  SELECT f.name, f.description, f.value_type, coalesce(o.value, f.default_value), coalesce(o.level, 'declared'),
         o.subject, o.set_by, o.reason, o.set_at
  FROM reeve.flags f
  LEFT JOIN LATERAL (
    SELECT x.* FROM reeve.flag_overrides x
    WHERE x.name = f.name AND (x.level, x.subject) IN (('tenant', tenant), ('plan', plan), ('default', ''))
    ORDER BY array_position(ARRAY['tenant', 'plan', 'default'], x.level) LIMIT 1) o ON true;
  END;
GRANT EXECUTE ON FUNCTION reeve.flags_in_force(text, text) TO reeve_ops;

-- A flag's value for the transaction's own tenant, as jsonb: true or false, a whole number, or a string.
--   RV001 no context   RV002 two contexts   RV003 tenant unknown   RV020 flag unknown
CREATE FUNCTION reeve.flag(name text) RETURNS jsonb LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  tenant text := reeve.caller_tenant();
  t reeve.tenants;
  found_value jsonb;
BEGIN
  SELECT * INTO t FROM reeve.tenants x WHERE x.id = tenant;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', tenant USING ERRCODE = 'RV003',
      HINT = 'Call reeve.register_tenant(id, name) when the workspace is made.';
  END IF;
  SELECT f.value INTO found_value FROM reeve.flags_in_force(t.id, t.plan) f WHERE f.name = flag.name;
  IF NOT FOUND THEN
    PERFORM reeve.require_flag(flag.name);
  END IF;
  RETURN found_value;
END $$;
GRANT EXECUTE ON FUNCTION reeve.flag(text) TO reeve_app, reeve_worker;

CREATE FUNCTION reeve.require_flag(name text) RETURNS reeve.flags LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  f reeve.flags;
BEGIN
  SELECT * INTO f FROM reeve.flags x WHERE x.name = require_flag.name;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: unknown flag "%"', coalesce(require_flag.name, 'NULL') USING ERRCODE = 'RV020',
      HINT = 'Known flags: ' || (SELECT coalesce(string_agg(x.name, ', ' ORDER BY x.name), 'none yet; run `reeve migrate`')
                                 FROM reeve.flags x);
  END IF;
  RETURN f;
END $$;

CREATE FUNCTION reeve.require_flag_value(name text, value_type text, value jsonb) RETURNS void LANGUAGE plpgsql IMMUTABLE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF coalesce(CASE value_type
    WHEN 'bool' THEN jsonb_typeof(value) = 'boolean'
    WHEN 'int' THEN jsonb_typeof(value) = 'number' AND (value #>> '{}') ~ '^-?[0-9]{1,18}$'
    WHEN 'text' THEN jsonb_typeof(value) = 'string' AND length(value #>> '{}') <= 1000 END, false) THEN
    RETURN;
  END IF;
  IF value_type NOT IN ('bool', 'int', 'text') OR value_type IS NULL THEN
    RAISE EXCEPTION 'reeve: a flag is bool, int or text, not "%"', coalesce(value_type, 'NULL') USING ERRCODE = 'RV005';
  END IF;
  RAISE EXCEPTION 'reeve: flag "%" takes %, not %', name,
    CASE value_type WHEN 'bool' THEN 'true or false' WHEN 'int' THEN 'a whole number of at most 18 digits'
                    ELSE 'a text of at most 1000 characters' END,
    left(coalesce(value::text, 'NULL'), 60) USING ERRCODE = 'RV005';
END $$;

CREATE FUNCTION reeve.kinds_off(tenant text, plan text) RETURNS text[] LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT array_agg(substr(f.name, 6) ORDER BY f.name) FROM reeve.flags_in_force(tenant, plan) f
  WHERE f.name LIKE 'kind.%' AND f.value = 'false'
$$;

-- A tenant that comes, or changes its plan, gets what its plan has off. The shared lock waits for a flag that is being
-- set, whose setter looked at the tenants before this one was there. It is taken by the statement, before any row is
-- locked: the setter holds its lock when it comes to the rows, and the two would wait for each other.
CREATE FUNCTION reeve.tenant_kinds_off() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF TG_LEVEL = 'STATEMENT' THEN
    PERFORM pg_advisory_xact_lock_shared(7263, 1);
    RETURN NULL;
  END IF;
  NEW.kinds_off := reeve.kinds_off(NEW.id, NEW.plan);
  RETURN NEW;
END $$;
GRANT EXECUTE ON FUNCTION reeve.tenant_kinds_off() TO reeve_owner;

-- One change of flags at a time, and none while a tenant is being registered.
CREATE FUNCTION reeve.lock_flags() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
  SET lock_timeout = '5s' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(7263, 1);
EXCEPTION WHEN lock_not_available THEN
  RAISE EXCEPTION 'reeve: flags could not be locked within 5 s' USING ERRCODE = 'RV007',
    HINT = 'A transaction that registers a tenant or changes its plan is open; `reeve doctor` names the oldest. Try again.';
END $$;

-- Which tenants an override speaks of, and refusals of those it cannot.
CREATE FUNCTION reeve.require_flag_subject(level text, subject text) RETURNS void LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF level IS NULL OR level NOT IN ('default', 'plan', 'tenant') THEN
    RAISE EXCEPTION 'reeve: a flag is set by default, plan or tenant, not "%"', coalesce(level, 'NULL')
      USING ERRCODE = 'RV005';
  END IF;
  IF (level = 'default') <> (coalesce(subject, '') = '') OR length(subject) > 100 THEN
    RAISE EXCEPTION 'reeve: a flag''s plan or tenant is named in 1 to 100 characters, and the default names neither'
      USING ERRCODE = 'RV005';
  END IF;
  IF level = 'tenant' AND NOT EXISTS (SELECT FROM reeve.tenants t WHERE t.id = subject) THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', subject USING ERRCODE = 'RV003',
      HINT = '`reeve tenants list` shows those that are.';
  END IF;
END $$;

-- After a change of the flag of a kind: tells the tenants' rows, and wakes workers where the kind came back.
CREATE FUNCTION reeve.flag_changed(flag text, level text, subject text) RETURNS void LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  regions text[];
BEGIN
  IF flag NOT LIKE 'kind.%' THEN
    RETURN;
  END IF;
  WITH now_off AS MATERIALIZED (
    SELECT t.id, reeve.kinds_off(t.id, t.plan) AS kinds FROM reeve.tenants t
    WHERE CASE flag_changed.level WHEN 'tenant' THEN t.id = flag_changed.subject
                                  WHEN 'plan' THEN t.plan = flag_changed.subject ELSE true END),
  changed AS (
    UPDATE reeve.tenants t SET kinds_off = n.kinds FROM now_off n
    WHERE t.id = n.id AND t.kinds_off IS DISTINCT FROM n.kinds
    RETURNING t.region, coalesce(substr(flag, 6) <> ALL (t.kinds_off), true) AS came_back)
  SELECT array_agg(DISTINCT c.region) FILTER (WHERE c.came_back) INTO regions FROM changed c;
  PERFORM reeve.ring_doorbell(k.queue, region)
  FROM unnest(regions) region JOIN reeve.kinds k ON k.name = substr(flag, 6);
END $$;

CREATE FUNCTION reeve.audit_flag(action text, flag text, level text, subject text, actor text, reason text, fields text[])
  RETURNS void LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.audit_append(CASE level WHEN 'tenant' THEN subject ELSE '-' END, actor, action,
    CASE level WHEN 'plan' THEN left(format('flag:%s plan:%s', flag, subject), 200) ELSE 'flag:' || flag END,
    reason, fields, NULL, NULL, NULL)
$$;

-- Makes a flag of the app's own known, or changes its description and default. Returns whether it is new.
CREATE FUNCTION reeve.declare_flag(name text, value_type text, default_value jsonb, description text, actor text,
                                   reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was reeve.flags;
BEGIN
  IF (name ~ '^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$' AND length(name) <= 100) IS NOT TRUE OR name LIKE 'kind.%' THEN
    RAISE EXCEPTION 'reeve: a flag cannot be named "%"', coalesce(name, 'NULL') USING ERRCODE = 'RV005',
      HINT = 'Words of a-z, 0-9 and _, joined by dots, at most 100 characters; kind.… are Reeve''s own.';
  END IF;
  IF (length(description) BETWEEN 1 AND 500) IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: a flag has a description of 1 to 500 characters' USING ERRCODE = 'RV005';
  END IF;
  PERFORM reeve.require_flag_value(name, value_type, default_value);
  PERFORM reeve.lock_flags();
  SELECT * INTO was FROM reeve.flags f WHERE f.name = declare_flag.name;
  IF was.value_type <> declare_flag.value_type THEN
    RAISE EXCEPTION 'reeve: flag "%" is %, and stays it', name, was.value_type USING ERRCODE = 'RV008',
      HINT = 'Those who read it expect that type; declare another name.';
  END IF;
  INSERT INTO reeve.flags AS f (name, description, value_type, default_value)
  VALUES (declare_flag.name, declare_flag.description, declare_flag.value_type, declare_flag.default_value)
  ON CONFLICT ON CONSTRAINT flags_pkey
  DO UPDATE SET description = excluded.description, default_value = excluded.default_value;
  PERFORM reeve.audit_flag('flag.declared', name, 'default', '', actor, reason,
    array_remove(ARRAY[CASE WHEN was.name IS NULL THEN 'value_type' END,
      CASE WHEN was.description IS DISTINCT FROM declare_flag.description THEN 'description' END,
      CASE WHEN was.default_value IS DISTINCT FROM declare_flag.default_value THEN 'default_value' END], NULL));
  RETURN was.name IS NULL;
END $$;

-- Sets a flag for one tenant, one plan or by default. Returns the override's former value, or NULL when there was none.
CREATE FUNCTION reeve.set_flag(name text, value jsonb, level text, subject text, actor text, reason text) RETURNS jsonb
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  f reeve.flags := reeve.require_flag(name);
  was jsonb;
BEGIN
  PERFORM reeve.require_flag_value(f.name, f.value_type, value);
  PERFORM reeve.require_flag_subject(level, subject);
  PERFORM reeve.lock_flags();
  SELECT o.value INTO was FROM reeve.flag_overrides o
  WHERE o.name = f.name AND o.level = set_flag.level AND o.subject = coalesce(set_flag.subject, '');
  INSERT INTO reeve.flag_overrides AS o (name, level, subject, value, set_by, reason)
  VALUES (f.name, set_flag.level, coalesce(set_flag.subject, ''), set_flag.value, actor, set_flag.reason)
  ON CONFLICT ON CONSTRAINT flag_overrides_pkey DO UPDATE SET value = excluded.value, set_by = excluded.set_by,
    reason = excluded.reason, set_at = now();
  PERFORM reeve.flag_changed(f.name, level, subject);
  PERFORM reeve.audit_flag('flag.set', f.name, level, subject, actor, reason, ARRAY['value']);
  RETURN was;
END $$;

-- Takes an override away, so that the next lower level decides. Returns its value; NULL, and nothing is done or audited,
-- when there was none.
CREATE FUNCTION reeve.clear_flag(name text, level text, subject text, actor text, reason text) RETURNS jsonb
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  f reeve.flags := reeve.require_flag(name);
  was jsonb;
BEGIN
  PERFORM reeve.require_flag_subject(level, subject);
  PERFORM reeve.lock_flags();
  DELETE FROM reeve.flag_overrides o
  WHERE o.name = f.name AND o.level = clear_flag.level AND o.subject = coalesce(clear_flag.subject, '')
  RETURNING o.value INTO was;
  IF was IS NOT NULL THEN
    PERFORM reeve.flag_changed(f.name, level, subject);
    PERFORM reeve.audit_flag('flag.cleared', f.name, level, subject, actor, reason, ARRAY['value']);
  END IF;
  RETURN was;
END $$;
GRANT EXECUTE ON FUNCTION reeve.declare_flag(text, text, jsonb, text, text, text),
  reeve.set_flag(text, jsonb, text, text, text, text), reeve.clear_flag(text, text, text, text, text) TO reeve_ops;

SET LOCAL ROLE reeve_owner;

CREATE TRIGGER kinds_off_lock BEFORE INSERT OR UPDATE OF plan ON reeve.tenants
  FOR EACH STATEMENT EXECUTE FUNCTION reeve.tenant_kinds_off();
CREATE TRIGGER kinds_off BEFORE INSERT OR UPDATE OF plan ON reeve.tenants
  FOR EACH ROW EXECUTE FUNCTION reeve.tenant_kinds_off();

RESET ROLE;
