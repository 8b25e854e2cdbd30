-- Notices what others did to the items of a run: requeued some, or took the last away.
-- Returns the state of the run, or 'unknown'.
-- ARGV: run
notice(ARGV[1])
return redis.call('HGET', run_key(ARGV[1]), 'state') or 'unknown'
