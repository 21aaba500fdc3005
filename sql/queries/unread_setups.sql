-- Internal.
-- One row per setup of a task: how many of its replies were read by an earlier version of its parser only. Grades that
-- people made are left out. Parameters: task, reader, labels (the answer format of such grades).
select s.setup_id::varchar as setup_id, any_value(r.content) as content, any_value(s.decoding) as decoding, count(*) as replies
from replies p
join questions q using (key)
join setups s using (setup_id)
join rubrics r using (rubric_id)
where s.task = $task
  and coalesce(s.decoding::json ->> 'contract', '') <> $labels
  and exists (
      from readings d where d.attempt_id = p.attempt_id and d.key = p.key and d.request_id = p.request_id
  )
  and not exists (
      from readings d
      where d.attempt_id = p.attempt_id and d.key = p.key and d.request_id = p.request_id and d.reader = $reader
  )
group by s.setup_id
order by s.setup_id;
