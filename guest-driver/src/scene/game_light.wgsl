// Lighting: `cost` coloured lamps wander over the scene. GPU time grows linearly with `cost`.

struct Pass {
    size: vec2<u32>,
    cost: u32,
    frame: u32,
}

@group(0) @binding(0) var<uniform> settings: Pass;
@group(0) @binding(1) var<storage, read> geometry: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> lit: array<vec4<f32>>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= settings.size) { return; }
    let size = vec2<f32>(settings.size);
    let ndc = (vec2<f32>(gid.xy) + 0.5 - 0.5 * size) / (0.5 * size.y);
    let dir = normalize(vec3(ndc.x, -ndc.y - 0.36, 1.8));
    let time = f32(settings.frame % 3600u) * 0.01745329;
    let index = gid.y * settings.size.x + gid.x;
    let pixel = geometry[index];
    let depth = bitcast<f32>(pixel.y);
    let at = vec3(0.0, 2.2, -5.0) + dir * min(depth, 60.0);
    let normal = unpack4x8snorm(pixel.x).xyz;
    let albedo = unpack4x8unorm(pixel.z).rgb;

    let n = max(settings.cost, 1u);
    var sum = vec3<f32>(0.0);
    for (var i = 0u; i < n; i++) {
        let phase = 1.9 * f32(i);
        let lamp = vec3(3.6 * sin(0.9 * time + phase), 0.9 + 0.5 * sin(1.3 * phase), 1.2 + 3.4 * cos(0.7 * time + 1.3 * phase));
        let way = lamp - at;
        let near = dot(way, way);
        let toward = way * inverseSqrt(near);
        let tint = 0.6 + 0.4 * cos(vec3(0.0, 2.1, 4.2) + 2.4 * f32(i));
        let facing = max(dot(normal, toward), 0.0);
        let shine = max(dot(reflect(dir, normal), toward), 0.0);
        let shine_8 = (shine * shine) * (shine * shine) * (shine * shine) * (shine * shine);
        let gloss = (shine_8 * shine_8) * (shine_8 * shine_8);
        sum += tint * (albedo * facing + 0.6 * gloss) / (0.25 + near);
    }
    sum *= 10.0 / (f32(n) + 2.0);
    let sun = max(dot(normal, vec3(0.36, 0.8, -0.48)), 0.0);
    let sky = mix(vec3(0.55, 0.38, 0.32), vec3(0.05, 0.07, 0.18), clamp(dir.y * 2.2 + 0.15, 0.0, 1.0));
    let fog = 1.0 - exp(-0.035 * min(depth, 60.0));
    let surface = mix(albedo * (0.06 + 0.28 * sun) + sum, sky, fog * 0.8);
    lit[index] = vec4(select(sky, surface, pixel.w == 1u), 1.0);
}
