-- Cancels a run: the flag first, which ends all claims and leases, then its items in chunks.
-- Call it until it returns 0. Returns the items still to move, or 'unknown', or 'done' (nothing to cancel).
-- ARGV: run, chunk
go_on_when_full()
local run, chunk = ARGV[1], tonumber(ARGV[2])
local state = redis.call('HGET', run_key(run), 'state')
if not state then return 'unknown' end
if state == 'done' then return 'done' end
if state ~= 'cancelled' then
  end_run(run, 'cancelled')
  redis.call('INCR', P .. 'control')
end
for _, member in ipairs(redis.call('ZRANGE', registry('wip', run), 0, chunk - 1)) do
  if end_lease(run, member) then cancel_item(run, (split_member(member))) end
end
for _, job in ipairs(redis.call('LPOP', queue_key(run), chunk) or {}) do cancel_item(run, job) end
local delayed = redis.call('ZPOPMIN', registry('scheduled', run), chunk)
for index = 1, #delayed, 2 do cancel_item(run, delayed[index]) end
return count_left(run)
