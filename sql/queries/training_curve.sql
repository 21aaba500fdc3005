-- Loss, rate and speed of one training, by step. Parameters: folder (as `trainings` has it; the newest training if
-- null).
select c.step, c.epoch, c.loss, c.learning_rate, c.grad_norm, c.examples, c.tokens, c.tokens_per_second, c.peak_bytes
from training_curve c
join training_list t using (training_id)
where t.training_id = (
    select training_id from training_list
    where $folder::varchar is null or folder = $folder::varchar
    order by started_at desc, training_id limit 1
)
order by c.step;
