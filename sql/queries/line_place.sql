-- Internal.
-- Where a line of an attempt stands: its batch, and the dataset and position of the row that its question is about
-- (null where it is about none). Parameters: attempt, key.
select
    (
        select arg_max(f ->> 'batch_id', step)
        from (select step, try_cast(facts as json) as f from attempt_steps where attempt_id = a.attempt_id)
        where f ->> 'batch_id' is not null
    ) as batch_id,
    d.label as dataset, p.position
from attempts a
left join runs r using (run_id)
left join questions q on q.key = $key::uuid
left join first_positions p on p.version_id = r.version_id and p.example_id = q.example_id
left join dataset_labels d on d.version_id = p.version_id
where a.attempt_id = $attempt::uuid;
