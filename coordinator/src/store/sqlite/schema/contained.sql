-- How well agents keep programs apart from their machines. One that said nothing has the lowest tier.
ALTER TABLE agents ADD COLUMN contained TEXT NOT NULL DEFAULT '{"tier":"T0"}';
