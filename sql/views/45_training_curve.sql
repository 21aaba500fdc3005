-- One row per optimizer step of a training: steps repeated after a checkpoint are shown once, as done
-- last.
create or replace view training_curve as
select
    p.training_id, s.step, s.epoch, s.loss, s.learning_rate, s.grad_norm, s.examples, s.tokens, s.tokens_per_second,
    s.peak_bytes, s.recorded_at
from training_steps s
join training_parts p using (part_id)
where not exists (
    from training_parts q
    where q.training_id = p.training_id and q.started_at > p.started_at and q.from_step < s.step
)
qualify row_number() over (partition by p.training_id, s.step order by p.started_at desc, s.part_id) = 1;
