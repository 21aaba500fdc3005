-- The loss on the held-out rows of one training, by step. Parameters: folder (as `trainings` has it; the newest training
-- if null).
select h.step, h.loss, h.rows, h.tokens
from training_held_out h
where h.training_id = (
    select training_id from training_list
    where $folder::varchar is null or folder = $folder::varchar
    order by started_at desc, training_id limit 1
)
order by h.step;
