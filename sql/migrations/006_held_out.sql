-- The loss on the rows that a training holds out.

-- One row a point at which a part of a training took it.
create table training_held_out_losses (
    part_id uuid not null,
    step integer not null,             -- after this step; 0 is before the first
    loss double not null,              -- mean over the trained tokens of the held-out rows
    rows integer not null,
    tokens bigint not null,            -- that the mean is over
    recorded_at timestamp not null
);
