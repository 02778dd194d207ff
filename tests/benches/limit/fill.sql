-- psql -v jobs=N: fills the table with N jobs, and lets the planner know.
INSERT INTO limit_jobs (tenant_id, payload)
SELECT 'tenant-' || lpad((i % 20)::text, 2, '0'), '{"note": null, "sleep_ms": 0}' FROM generate_series(1, :jobs) AS i;
VACUUM ANALYZE limit_jobs;
CHECKPOINT;
