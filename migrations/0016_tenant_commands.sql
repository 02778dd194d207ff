-- What operators do to a tenant: register it, change it, pause and resume it. Each is audited in the same transaction, with
-- who and why; the entry has the names of the changed fields, never a value.
--   ops   ops_register_tenant, change_tenant, pause_tenant
-- Not here: `closing` and `closed`, which belong to the closing of a workspace; region and placement, which move rows.
SET LOCAL ROLE reeve_dispatch;

-- One field's new value, or a refusal that says what would be right and never repeats the value: one of them is personal
-- data, and an error's text goes to logs.
CREATE FUNCTION reeve.require_tenant_field(field text, value jsonb) RETURNS void LANGUAGE plpgsql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  kind text := jsonb_typeof(value);
  said text := value #>> '{}';
  -- A whole number that fits; other JSON numbers (1e9, 1.5) do not match.
  number bigint := CASE WHEN kind = 'number' AND said ~ '^-?[0-9]{1,10}$' THEN said::bigint END;
  fine boolean;
  takes text;
BEGIN
  CASE field
    WHEN 'weight' THEN
      fine := number BETWEEN 1 AND 100; takes := 'a whole number from 1 to 100';
    WHEN 'running_max' THEN
      fine := kind = 'null' OR number BETWEEN 0 AND 2147483647; takes := 'a whole number from 0 to 2147483647, or none';
    WHEN 'name' THEN
      fine := kind = 'string' AND length(said) BETWEEN 1 AND 200 AND said !~ '[[:cntrl:]]';
      takes := '1 to 200 characters, none of them a control character';
    WHEN 'plan' THEN
      fine := kind = 'null' OR kind = 'string' AND length(said) BETWEEN 1 AND 100 AND said !~ '[[:cntrl:]]';
      takes := '1 to 100 characters, none of them a control character, or none';
    WHEN 'locale' THEN
      fine := kind = 'string' AND length(said) <= 35 AND said ~ '^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$';
      takes := 'a language tag, such as de or pt-BR';
    WHEN 'time_zone' THEN
      fine := kind = 'string' AND EXISTS (SELECT FROM pg_timezone_names z WHERE z.name = said);
      takes := 'a name of the time zone database that PostgreSQL knows, such as Europe/Zurich';
    WHEN 'security_contact' THEN
      fine := kind = 'null' OR kind = 'string' AND length(said) BETWEEN 3 AND 320 AND said !~ '[[:cntrl:]]';
      takes := '3 to 320 characters, none of them a control character, or none';
    ELSE
      RAISE EXCEPTION 'reeve: a tenant has no field "%" that can be set', left(field, 60) USING ERRCODE = 'RV005',
        HINT = 'Fields are weight, running_max, name, plan, locale, time_zone, security_contact.';
  END CASE;
  IF fine IS NOT TRUE THEN
    RAISE EXCEPTION 'reeve: % takes %', field, takes USING ERRCODE = 'RV005';
  END IF;
END $$;

-- The tenant's row, locked. A closed tenant stays as it is.
CREATE FUNCTION reeve.lock_tenant(tenant text) RETURNS reeve.tenants LANGUAGE plpgsql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  t reeve.tenants;
BEGIN
  SELECT * INTO t FROM reeve.tenants x WHERE x.id = tenant FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'reeve: tenant "%" is not registered', tenant USING ERRCODE = 'RV003',
      HINT = '`reeve tenants list` shows those that are.';
  END IF;
  IF t.state = 'closed' THEN
    RAISE EXCEPTION 'reeve: tenant "%" is closed', tenant USING ERRCODE = 'RV006',
      HINT = 'Nothing of a closed tenant is changed any more.';
  END IF;
  RETURN t;
END $$;

-- Its waiting jobs may be claimed now: tells the workers that sleep, in every queue where it could have some.
CREATE FUNCTION reeve.ring_for_tenant(t reeve.tenants) RETURNS void LANGUAGE sql VOLATILE
  SET search_path = pg_catalog, pg_temp AS $$
  SELECT reeve.ring_doorbell(q.queue, t.region) FROM (SELECT DISTINCT k.queue FROM reeve.kinds k) q
$$;

-- Makes the fields of `changes` (an object; null takes running_max, plan and security_contact away) the tenant's. Returns
-- the names of those that were different before; when there is none, nothing is written, audited or rung.
CREATE FUNCTION reeve.change_tenant(tenant text, changes jsonb, actor text, reason text) RETURNS text[]
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was reeve.tenants;
  anew reeve.tenants;
  changed text[];
BEGIN
  IF jsonb_typeof(changes) IS DISTINCT FROM 'object' OR changes = '{}' THEN
    RAISE EXCEPTION 'reeve: nothing was given to change' USING ERRCODE = 'RV005',
      HINT = 'Fields are weight, running_max, name, plan, locale, time_zone, security_contact.';
  END IF;
  PERFORM reeve.require_tenant_field(c.key, c.value) FROM jsonb_each(changes) c;
  IF changes ? 'plan' THEN
    -- The lock of the trigger on the plan (0012_flags.sql), taken before the row's: whoever sets a flag has it when it
    -- comes to the rows, and the two would wait for each other.
    PERFORM pg_advisory_xact_lock_shared(7263, 1);
  END IF;
  was := reeve.lock_tenant(tenant);
  anew := jsonb_populate_record(was, changes);
  SELECT array_agg(c.key ORDER BY c.key) INTO changed FROM jsonb_each(changes) c
  WHERE to_jsonb(was) -> c.key IS DISTINCT FROM to_jsonb(anew) -> c.key;
  IF changed IS NULL THEN
    RETURN '{}';
  END IF;
  UPDATE reeve.tenants t SET weight = anew.weight, running_max = anew.running_max, name = anew.name, locale = anew.locale,
    time_zone = anew.time_zone, security_contact = anew.security_contact
  WHERE t.id = tenant;
  IF 'plan' = ANY (changed) THEN
    UPDATE reeve.tenants t SET plan = anew.plan WHERE t.id = tenant;
  END IF;
  -- A new plan may have kinds on that the old one had off.
  IF 'plan' = ANY (changed)
    OR 'running_max' = ANY (changed) AND (anew.running_max IS NULL OR anew.running_max > was.running_max) THEN
    PERFORM reeve.ring_for_tenant(was);
  END IF;
  PERFORM reeve.audit_append(tenant, actor, 'tenant.changed', 'tenant:' || tenant, reason, changed, NULL, NULL, NULL);
  RETURN changed;
END $$;

-- A paused tenant's jobs are enqueued as ever and wait; those that run already end. Returns whether it was otherwise before.
CREATE FUNCTION reeve.pause_tenant(tenant text, paused boolean, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  was reeve.tenants := reeve.lock_tenant(tenant);
BEGIN
  IF paused IS NULL THEN
    RAISE EXCEPTION 'reeve: a tenant is paused or not' USING ERRCODE = 'RV005';
  END IF;
  IF was.paused = pause_tenant.paused THEN
    RETURN false;
  END IF;
  UPDATE reeve.tenants t SET paused = pause_tenant.paused WHERE t.id = tenant;
  IF NOT pause_tenant.paused THEN
    PERFORM reeve.ring_for_tenant(was);
  END IF;
  PERFORM reeve.audit_append(tenant, actor, CASE WHEN pause_tenant.paused THEN 'tenant.paused' ELSE 'tenant.resumed' END,
    'tenant:' || tenant, reason, ARRAY['paused'], NULL, NULL, NULL);
  RETURN true;
END $$;

-- What the app does by reeve.register_tenant, by an operator, and audited. Returns whether the tenant is new.
CREATE FUNCTION reeve.ops_register_tenant(tenant text, name text, region text, actor text, reason text) RETURNS boolean
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  is_known boolean;
BEGIN
  -- Two operators at a time: the second finds it registered.
  PERFORM pg_advisory_xact_lock(7264, hashtext(tenant));
  is_known := EXISTS (SELECT FROM reeve.tenants t WHERE t.id = tenant);
  PERFORM reeve.register_tenant(tenant, name, region);
  IF is_known THEN
    RETURN false;
  END IF;
  PERFORM reeve.audit_append(tenant, actor, 'tenant.registered', 'tenant:' || tenant, reason, ARRAY['name', 'region'],
    NULL, NULL, NULL);
  RETURN true;
END $$;
GRANT EXECUTE ON FUNCTION reeve.change_tenant(text, jsonb, text, text), reeve.pause_tenant(text, boolean, text, text),
  reeve.ops_register_tenant(text, text, text, text, text) TO reeve_ops;

RESET ROLE;
