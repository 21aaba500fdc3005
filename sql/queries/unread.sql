-- The stored replies of a setup that a version of the parser has not read yet. Parameters: setup_id, reader.
select p.attempt_id, p.key, p.request_id, p.outcome, p.text, p.finish_reason, p.error, p.logprobs
from replies p
join questions q using (key)
where q.setup_id = $setup_id
  and not exists (
      from readings d
      where d.attempt_id = p.attempt_id and d.key = p.key and d.request_id = p.request_id and d.reader = $reader
  )
order by p.recorded_at, p.attempt_id, p.key, p.request_id;
