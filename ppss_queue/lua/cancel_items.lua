-- Cancels single items, running or not; those that ended stay as they are.
-- Returns how many were cancelled, or 'unknown'.
-- ARGV: run, job...
go_on_when_full()
local run, count = ARGV[1], 0
if redis.call('EXISTS', run_key(run)) == 0 then return 'unknown' end
local leased
for index = 2, #ARGV do
  local job = ARGV[index]
  local found = redis.call('LREM', queue_key(run), 1, job) + redis.call('ZREM', registry('scheduled', run), job)
  if found == 0 then
    if not leased then
      leased = {}
      for _, member in ipairs(redis.call('ZRANGE', registry('wip', run), 0, -1)) do
        leased[split_member(member)] = member
      end
    end
    if leased[job] and end_lease(run, leased[job]) then found = 1 end
  end
  if found > 0 then
    cancel_item(run, job)
    count = count + 1
  end
end
redis.call('INCR', P .. 'control')
settle(run)
return count
