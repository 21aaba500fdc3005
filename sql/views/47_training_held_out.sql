-- One row a point at which the loss on a training's held-out rows was taken, step 0 before the first: where a part went
-- back to a checkpoint, as it was taken last. The ids of those rows are in trainings.facts, held_out.
create or replace view training_held_out as
select p.training_id, h.step, h.loss, h.rows, h.tokens, h.recorded_at
from training_held_out_losses h
join training_parts p using (part_id)
where not exists (
    from training_parts q
    where q.training_id = p.training_id and q.started_at > p.started_at and q.from_step < h.step
)
qualify row_number() over (partition by p.training_id, h.step order by p.started_at desc, h.part_id) = 1;
