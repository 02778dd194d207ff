-- Limits that a plan can set. The flag limit.running_max (int) is how many jobs of a tenant may run at one time in one queue,
-- by default, by plan and by tenant as every flag is (0012_flags.sql); a number of a million or more is no cap. As with the
-- flags of kinds, the claim does not read the flags: what is in force stands in reeve.tenants.running_max_by_flag, which the
-- functions here keep. A number in reeve.tenants.running_max comes before it.
SET LOCAL ROLE reeve_dispatch;

CREATE FUNCTION reeve.running_max_by_flag(tenant text, plan text) RETURNS integer LANGUAGE sql STABLE
  SET search_path = pg_catalog, pg_temp AS $$
  -- Flags of type int are whole numbers of at most 18 digits.
  SELECT CASE WHEN (f.value #>> '{}')::bigint < 1000000 THEN greatest((f.value #>> '{}')::integer, 0) END
  FROM reeve.flags_in_force(tenant, plan) f WHERE f.name = 'limit.running_max'
$$;

-- As in 0012, and the limit with the kinds.
CREATE OR REPLACE FUNCTION reeve.tenant_kinds_off() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF TG_LEVEL = 'STATEMENT' THEN
    PERFORM pg_advisory_xact_lock_shared(7263, 1);
    RETURN NULL;
  END IF;
  NEW.kinds_off := reeve.kinds_off(NEW.id, NEW.plan);
  NEW.running_max_by_flag := reeve.running_max_by_flag(NEW.id, NEW.plan);
  RETURN NEW;
END $$;

-- As in 0012, and the limit with the kinds. Raising a limit wakes workers of every queue: whose jobs wait is not looked for.
CREATE OR REPLACE FUNCTION reeve.flag_changed(flag text, level text, subject text) RETURNS void LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  regions text[];
BEGIN
  IF flag NOT LIKE 'kind.%' AND flag <> 'limit.running_max' THEN
    RETURN;
  END IF;
  WITH in_force AS MATERIALIZED (
    SELECT t.id, reeve.kinds_off(t.id, t.plan) AS kinds, reeve.running_max_by_flag(t.id, t.plan) AS running_max,
           t.running_max_by_flag AS was
    FROM reeve.tenants t
    WHERE CASE flag_changed.level WHEN 'tenant' THEN t.id = flag_changed.subject
                                  WHEN 'plan' THEN t.plan = flag_changed.subject ELSE true END),
  changed AS (
    UPDATE reeve.tenants t SET kinds_off = n.kinds, running_max_by_flag = n.running_max FROM in_force n
    WHERE t.id = n.id AND (t.kinds_off IS DISTINCT FROM n.kinds OR t.running_max_by_flag IS DISTINCT FROM n.running_max)
    RETURNING t.region, CASE WHEN flag LIKE 'kind.%' THEN coalesce(substr(flag, 6) <> ALL (t.kinds_off), true)
                             ELSE t.running_max_by_flag IS NULL OR t.running_max_by_flag > n.was END AS came_back)
  SELECT array_agg(DISTINCT c.region) FILTER (WHERE c.came_back) INTO regions FROM changed c;
  PERFORM reeve.ring_doorbell(k.queue, region)
  FROM unnest(regions) region
  JOIN (SELECT DISTINCT x.queue FROM reeve.kinds x WHERE x.name = substr(flag, 6) OR flag = 'limit.running_max') k ON true;
END $$;

-- What is declared is not carried to the tenants' rows; setting it is. So Reeve's own limits keep what they came with.
CREATE FUNCTION reeve.refuse_redeclared_limit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'reeve: flag "%" is Reeve''s own and cannot be declared anew', OLD.name USING ERRCODE = 'RV005',
    HINT = 'Set it instead: reeve flags set ' || OLD.name || ' NUMBER --default --reason …';
END $$;
GRANT EXECUTE ON FUNCTION reeve.refuse_redeclared_limit() TO reeve_owner;

SET LOCAL ROLE reeve_owner;

CREATE TRIGGER limits_stay BEFORE UPDATE ON reeve.flags
  FOR EACH ROW WHEN (OLD.name LIKE 'limit.%') EXECUTE FUNCTION reeve.refuse_redeclared_limit();

RESET ROLE;
