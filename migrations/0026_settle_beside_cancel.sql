-- A settlement beside an operator's cancellation of the same job is stored, as one behind it would be.
--
-- reeve.settle (0006_queue.sql) is one statement: one part takes what is over, with what was to be cancelled, and another all
-- else. The first looks at rows as they were when the statement began, the second waits for whoever holds a row and asks
-- again. So of a job whose cancellation committed in between, each part left the retry, snooze or release to the other: the
-- worker was told that its lease was lost, and the job was over only when that lease had run out.
SET LOCAL ROLE reeve_dispatch;

ALTER FUNCTION reeve.settle(uuid[], uuid[], text[], double precision[], text[]) RENAME TO settle_once;
REVOKE EXECUTE ON FUNCTION reeve.settle_once(uuid[], uuid[], text[], double precision[], text[]) FROM reeve_worker;
ALTER FUNCTION reeve.settle_once(uuid[], uuid[], text[], double precision[], text[]) SECURITY INVOKER;

-- As described in 0006_queue.sql.
CREATE FUNCTION reeve.settle(ids uuid[], tokens uuid[], outcomes text[], delays double precision[], errors text[])
  RETURNS TABLE (settled uuid) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  stored bigint;
BEGIN
  RETURN QUERY SELECT o.settled FROM reeve.settle_once(ids, tokens, outcomes, delays, errors) o;
  GET DIAGNOSTICS stored = ROW_COUNT;
  -- A statement of its own sees what committed meanwhile. Once is enough: a running job is not un-cancelled. What the first
  -- one settled has its token no more.
  IF stored < cardinality(ids) THEN
    RETURN QUERY SELECT o.settled FROM reeve.settle_once(ids, tokens, outcomes, delays, errors) o;
  END IF;
END $$;
GRANT EXECUTE ON FUNCTION reeve.settle(uuid[], uuid[], text[], double precision[], text[]) TO reeve_worker;

RESET ROLE;
