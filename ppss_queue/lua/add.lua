-- Adds items to a run that is filling (not claimable yet) or still alive (claimable at once).
-- Returns the number of items in the run, or 'unknown' or 'cancelled'.
-- ARGV: run, RQ's constant `data`, seconds until an abandoned filling ends, item...
-- An item is its text, or NUL + root + NUL + text shown by RQ + NUL + exact text ('' where it is the same).
local run, data = ARGV[1], ARGV[2]
local state = redis.call('HGET', run_key(run), 'state')
if not state then return 'unknown' end
if state == 'cancelled' then return state end
if state == 'filling' then redis.call('ZADD', P .. 'filling', 'XX', NOW + tonumber(ARGV[3]), run) end
local count = #ARGV - 3
local last = redis.call('HINCRBY', run_key(run), 'total', count)
if count == 0 then return last end
local created, jobs = iso(NOW), {}
for index = 1, count do
  local item = ARGV[index + 3]
  local job = string.format('%s-%07d', run, last - count + index)
  if string.byte(item) == 0 then
    local root, shown, exact = string.match(item, '^%z(%d*)%z([^%z]*)%z([^%z]*)$')
    redis.call('HSET', job_key(job), 'data', data, 'status', 'queued', 'origin', run, 'created_at', created,
      'description', shown)
    if root ~= '' then redis.call('HSET', job_key(job), 'root', root) end
    if exact ~= '' then redis.call('HSET', job_key(job), 'item', exact) end
  else
    redis.call('HSET', job_key(job), 'data', data, 'status', 'queued', 'origin', run, 'created_at', created,
      'description', item)
  end
  jobs[index] = job
end
for first = 1, count, 1000 do
  redis.call('RPUSH', queue_key(run), unpack(jobs, first, math.min(first + 999, count)))
end
return last
