-- What scripts share. Each gets the definitions that it uses, and those that these use, put before it (scripts.py):
-- so a definition stands in a paragraph of its own, below those that it uses.

-- KEYS[1] is the prefix of our keys, KEYS[2] that of RQ's (keys.py lists them).
local P, R = KEYS[1], KEYS[2]

-- Added to scores that RQ's own clean-up must never reach.
local CENTURY = 3155760000

-- Added to the deadline of a lease whose item has begun to run; to that of other leases, one CENTURY. The worker
-- moves it itself, with a plain ZADD XX INCR just before it starts the command (calls.py): a script per item is dear.
local BEGUN = 2 * CENTURY

-- How long a node whose workers died stays on show.
local LOST_SECONDS = 86400

-- Bytes of failures' output kept per run.
local OUTPUT_BUDGET = 64 * 1024 * 1024

local server_time = redis.call('TIME')

local NOW = tonumber(server_time[1]) + tonumber(server_time[2]) / 1e6

local function run_key(run) return P .. 'run:' .. run end

local function queue_key(run) return R .. 'queue:' .. run end

local function registry(name, run) return R .. name .. ':' .. run end

local function job_key(job) return R .. 'job:' .. job end

-- What is wished of a node.
local function node_key(node) return P .. 'node:' .. node end

-- What its machine told last.
local function facts_key(node) return P .. 'facts:' .. node end

-- The names of its workers.
local function crew_key(node) return P .. 'crew:' .. node end

-- Items that may have failed for their node's fault, until another node has tried them.
-- Job -> '<until> <delay> <node>': the time until which another node is waited for, or '-' (as long as there is one);
-- the seconds until the next attempt should nobody try it, or '-' (never).
local function doubts_key(run) return P .. 'doubts:' .. run end

-- What came of such doubts: node -> failures that were the item's fault; node! -> failures that were the node's.
local function record_key(run) return P .. 'record:' .. run end

-- A worker is named after its node: <node>.<pid>-<random>.
local function node_of(worker) return string.match(worker, '^(.+)%.[^.]*$') or worker end

-- Anyone may put a job on a run's queue or schedule with RQ's own tools; such a job is dropped where it is met.
local function is_ours(run, job) return job ~= nil and string.match(job, '^' .. run .. '%-%d+$') ~= nil end

-- RQ's form of a time. Days to year, month, day: Howard Hinnant's civil_from_days.
local function iso(seconds)
  local days = math.floor(seconds / 86400)
  local rest = seconds - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor(
    (doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(rest / 3600),
    math.floor(rest / 60) % 60, math.floor(rest) % 60, math.floor((rest % 1) * 1e6))
end

local function check_schema(version)
  local schema = redis.call('GET', P .. 'schema')
  if not schema then
    redis.call('SET', P .. 'schema', version)
  elseif not tonumber(schema) then
    return redis.error_reply('PPSS_FOREIGN the key ' .. P .. 'schema holds data of another program. Remove it.')
  elseif tonumber(schema) > tonumber(version) then
    return redis.error_reply('PPSS_NEWER this Redis is used by a newer PPSS (schema ' .. schema .. '). Upgrade this one.')
  end
end

-- At its maxmemory Redis refuses commands that may need memory, until a script has written something: so
-- scripts that end or keep up what is there begin with a write that frees. Only new items are refused.
local function go_on_when_full() redis.call('ZREM', P .. 'open', '') end

-- One entry per terminal move of an item; seq 0 is the run itself.
local function event(run, job, state, attempt)
  redis.call('XADD', P .. 'events:' .. run, '*', 's', tonumber(string.match(job, '(%d+)$')), 't', state,
    'a', attempt or 0)
end

local function split_member(member) return string.match(member, '^(.*):([^:]*)$') end

-- Removes what RQ shows of a started attempt; whether there was one.
local function drop_execution(member)
  local job = split_member(member)
  local key = R .. 'execution:' .. member
  local worker = redis.call('HGET', key, 'worker_name')
  if not worker then return false end
  redis.call('DEL', key, R .. 'executions:' .. job)
  redis.call('SREM', R .. 'worker:' .. worker .. ':executions', member)
  return true
end

-- Whether the item of a lease is still there to be run: RQ deletes and cancels items but leaves our leases.
local function is_alive(job)
  if not job then return false end
  local status = redis.call('HGET', job_key(job), 'status')
  return status == 'queued' or status == 'started'
end

-- Ends a lease; whether `member` (<job>:<token>) was one, of an item that is still alive, and whether it had begun.
local function end_lease(run, member)
  local score = redis.call('ZSCORE', registry('wip', run), member)
  if score then redis.call('ZREM', registry('wip', run), member) end
  local shown = drop_execution(member)
  local job = split_member(member)
  if not score or not is_alive(job) then return false, false end
  local begun = tonumber(score) >= BEGUN
  if begun and not shown then redis.call('HINCRBY', job_key(job), 'attempts', 1) end -- it ended before `start`
  return true, begun
end

local function lowest_pass()
  local first = redis.call('ZRANGE', P .. 'open', 0, 0, 'WITHSCORES')
  return first[2] or 0
end

local function count_left(run)
  return redis.call('LLEN', queue_key(run)) + redis.call('ZCARD', registry('wip', run))
    + redis.call('ZCARD', registry('scheduled', run))
end

local function end_run(run, state)
  redis.call('HSET', run_key(run), 'state', state, 'ended', NOW)
  redis.call('ZREM', P .. 'open', run)
  redis.call('ZREM', P .. 'filling', run)
  redis.call('DEL', doubts_key(run))
  redis.call('ZADD', P .. 'ended', NOW + (tonumber(redis.call('HGET', run_key(run), 'keep')) or 0), run)
  redis.call('INCR', P .. 'wake') -- whoever waits for its last items of others can end
  event(run, '0', state)
end

-- A run whose last item ended is done.
local function settle(run)
  local state = redis.call('HGET', run_key(run), 'state')
  if (state == 'open' or state == 'paused') and count_left(run) == 0 then end_run(run, 'done') end
end

-- Whether `member` is a lease, of an item that is still alive; if not, nothing of it is left.
local function is_held(run, member)
  if redis.call('ZSCORE', registry('wip', run), member) and is_alive((split_member(member))) then return true end
  end_lease(run, member)
  settle(run)
  return false
end

local function open_run(run)
  redis.call('HSET', run_key(run), 'state', 'open')
  redis.call('HDEL', run_key(run), 'ended', 'reason', 'since')
  redis.call('ZREM', P .. 'ended', run)
  redis.call('ZREM', P .. 'filling', run)
  redis.call('ZADD', P .. 'open', 'NX', lowest_pass(), run)
  redis.call('SADD', R .. 'queues', queue_key(run))
  redis.call('INCR', P .. 'wake')
  redis.call('INCR', P .. 'control')
end

-- What others did to the items of a run: requeued from a dashboard, a done run is open again; emptied, it is done.
local function notice(run)
  local state, left = redis.call('HGET', run_key(run), 'state'), count_left(run)
  if state == 'done' and left > 0 then
    go_on_when_full() -- here, not above: whoever only looks writes nothing
    open_run(run)
  elseif (state == 'open' or state == 'paused') and left == 0 then
    go_on_when_full()
    settle(run)
  end
end

-- Forgets what a failed attempt printed, and gives its room back.
local function drop_output(run, job)
  local kept = redis.call('XRANGE', R .. 'results:' .. job, '-', '+', 'COUNT', 1)[1]
  if not kept then return end
  redis.call('HINCRBY', run_key(run), 'kept_bytes', -#(kept[2][4] or ''))
  redis.call('DEL', R .. 'results:' .. job)
end

-- Moves an item that is held by nobody into the failed state. `text` is RQ's form of an output, or ''.
local function fail_item(run, job, outcome, text)
  redis.call('ZADD', registry('failed', run), NOW + CENTURY, job)
  redis.call('HSET', job_key(job), 'status', 'failed', 'outcome', outcome, 'ended_at', iso(NOW))
  redis.call('HDEL', doubts_key(run), job)
  if text ~= '' and redis.call('HINCRBY', run_key(run), 'kept_bytes', #text) <= OUTPUT_BUDGET then
    redis.call('XADD', R .. 'results:' .. job, 'MAXLEN', 1, '*', 'type', 2, 'exc_string', text)
  end
  event(run, job, 'failed', redis.call('HGET', job_key(job), 'attempts') or 0)
end

-- Pauses a run whose halt rule is met. A percentage counts once three items failed, as in GNU parallel: one early
-- failure is no trend.
local function check_halt(run)
  local values = redis.call('HMGET', run_key(run), 'halt', 'state')
  local when, count, percent = string.match(values[1] or '', '^(%a+):(%d+):([%d.]+)$')
  if not when or values[2] ~= 'open' then return end
  local failed = redis.call('ZCARD', registry('failed', run))
  local ended = failed + redis.call('ZCARD', registry('finished', run))
  local reached = tonumber(count) > 0 and failed >= tonumber(count)
    or tonumber(count) == 0 and failed >= 3 and failed * 100 >= tonumber(percent) * ended
  if not reached then return end
  local reason = string.format('halted %s: %d item%s failed', when, failed, failed == 1 and '' or 's')
  redis.call('HSET', run_key(run), 'state', 'paused', 'reason', reason)
  redis.call('ZREM', P .. 'open', run)
  redis.call('INCR', P .. 'control')
  event(run, '0', 'paused')
end

-- Names of a node's workers that were heard of lately; the others are forgotten.
local function alive_crew(node)
  local alive = {}
  for _, worker in ipairs(redis.call('SMEMBERS', crew_key(node))) do
    if redis.call('EXISTS', R .. 'worker:' .. worker) == 1 then
      alive[#alive + 1] = worker
    else
      redis.call('SREM', crew_key(node), worker)
    end
  end
  table.sort(alive)
  return alive
end

-- Takes a node off show. What is wished of it stays, but that its workers of now stop.
local function forget_node(node)
  redis.call('ZREM', P .. 'nodes', node)
  redis.call('DEL', facts_key(node), crew_key(node))
  redis.call('HDEL', node_key(node), 'stop', 'how')
  if redis.call('HLEN', node_key(node)) == 1 then redis.call('HDEL', node_key(node), 'id') end
end

-- RQ's form (zlib, base64) of 'lost too often: its worker died'
local DIED = 'eJzLyS8uUSjJz1fITytJzbNSyCwpVijPL8pOLVJIyUxNAQC56wuL'

-- Ends the lease of a dead worker; whether the item can be tried again: lost too often, it has failed.
local function take_back(run, member, max_lost)
  local job = split_member(member)
  if not is_ours(run, job) then
    redis.call('ZREM', registry('wip', run), member)
    return false
  end
  local alive, begun = end_lease(run, member)
  if not alive or not begun then return alive end
  redis.call('HINCRBY', run_key(run), 'lost', 1)
  local lost = redis.call('HINCRBY', job_key(job), 'lost', 1)
  if lost <= max_lost then return true end
  fail_item(run, job, cjson.encode({ reason = 'lost ' .. lost .. ' times: its worker died' }), DIED)
  check_halt(run)
  return false
end

local function cancel_item(run, job)
  if not is_ours(run, job) or redis.call('EXISTS', job_key(job)) == 0 then return end
  redis.call('ZADD', registry('canceled', run), NOW + CENTURY, job)
  redis.call('HSET', job_key(job), 'status', 'canceled', 'ended_at', iso(NOW))
  redis.call('HDEL', doubts_key(run), job)
  event(run, job, 'cancelled', redis.call('HGET', job_key(job), 'attempts') or 0)
end

local function worker_idle(worker)
  local key = R .. 'worker:' .. worker
  if redis.call('SCARD', key .. ':executions') == 0 and redis.call('EXISTS', key) == 1 then
    redis.call('HDEL', key, 'current_job')
    redis.call('HSET', key, 'state', 'idle')
  end
end

-- Makes an item ready, as the next one to be taken.
local function put_first(run, job)
  redis.call('HSET', job_key(job), 'status', 'queued')
  redis.call('LPUSH', queue_key(run), job)
end

-- Puts items whose leases a worker gives up to the front of the ready list, in the order given; how many.
-- `arguments`: run, worker, member...; `ends(run, member)` ends a lease, and tells whether the item is to be ready.
local function hand_back(arguments, ends)
  local run, count = arguments[1], 0
  for index = #arguments, 3, -1 do
    if ends(run, arguments[index]) then
      put_first(run, (split_member(arguments[index])))
      count = count + 1
    end
  end
  worker_idle(arguments[2])
  settle(run)
  return count
end
