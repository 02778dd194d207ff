-- A hundred jobs are leased in one transaction and deleted in the next: what no drain that leases can beat.
WITH batch AS (
  SELECT id FROM limit_jobs WHERE state = 'available' ORDER BY run_at, id LIMIT 100 FOR UPDATE SKIP LOCKED
), leased AS (
  UPDATE limit_jobs j SET state = 'running', attempt = attempt + 1 FROM batch WHERE j.id = batch.id RETURNING j.id
)
SELECT coalesce(array_agg(id)::text, '{}') AS ids FROM leased \gset
DELETE FROM limit_jobs WHERE id = ANY (:ids::bigint[]);
