-- Hands leased items back to the front of the ready list, in the order given; not an attempt that failed.
-- Returns how many were handed back; those that were lost meanwhile are left alone.
-- ARGV: run, worker, member...
go_on_when_full()
local run, count = ARGV[1], 0
for index = #ARGV, 3, -1 do
  local member = ARGV[index]
  if end_lease(run, member) then
    local job = split_member(member)
    redis.call('HSET', job_key(job), 'status', 'queued')
    redis.call('LPUSH', queue_key(run), job)
    count = count + 1
  end
end
worker_idle(ARGV[2])
settle(run)
return count
