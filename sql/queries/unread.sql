-- Internal.
-- The stored replies of a setup that a version of the parser has not read yet, each with what the newest one before it
-- read: its score, its other values, and whether it was read at all. Parameters: setup_id, reader.
select
    p.attempt_id, p.key, p.request_id, p.outcome, p.text, p.finish_reason, p.error, p.logprobs,
    b.reading is not null as was_read, b.reading.score as score, b.reading.value as value
from replies p
join questions q using (key)
left join latest_readings b using (attempt_id, key, request_id)
where q.setup_id = $setup_id
  and not exists (
      from readings d
      where d.attempt_id = p.attempt_id and d.key = p.key and d.request_id = p.request_id and d.reader = $reader
  )
order by p.recorded_at, p.attempt_id, p.key, p.request_id;
