-- What a session's usage cost is stored with it, and by which price.
UPDATE sessions SET doc = json_set(doc, '$.usage', json(kage_priced(doc -> '$.usage', doc ->> '$.started_at')))
    WHERE json_array_length(doc, '$.usage') > 0;
