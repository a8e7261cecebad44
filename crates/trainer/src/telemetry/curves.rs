//! `report/curves.svg`: loss and top-1 error by epoch.

use std::path::Path;

use plotters::prelude::*;

use super::records::EpochRecord;
use crate::error::Error;

const SIZE: (u32, u32) = (1000, 420);

/// One curve of a panel.
struct Curve {
    label: &'static str,
    color: RGBColor,
    value: fn(&EpochRecord) -> Option<f64>,
}

struct Panel {
    title: &'static str,
    curves: [Curve; 2],
}

const TRAIN: RGBColor = RGBColor(31, 119, 180);
const TEST: RGBColor = RGBColor(214, 39, 40);

const PANELS: [Panel; 2] = [
    Panel {
        title: "loss",
        curves: [
            Curve { label: "train", color: TRAIN, value: |epoch| epoch.train_loss },
            Curve { label: "test", color: TEST, value: |epoch| epoch.test_loss },
        ],
    },
    Panel {
        title: "top-1 error, %",
        curves: [
            Curve {
                label: "train",
                color: TRAIN,
                value: |epoch| epoch.train_top1_error.map(|error| 100.0 * error),
            },
            Curve {
                label: "test",
                color: TEST,
                value: |epoch| epoch.test_top1_error.map(|error| 100.0 * error),
            },
        ],
    },
];

/// Draws the epochs so far; does nothing while there is none.
pub(crate) fn draw(path: &Path, title: &str, epochs: &[EpochRecord]) -> Result<(), Error> {
    let Some(last) = epochs.last() else { return Ok(()) };
    let failed =
        |error: &dyn std::fmt::Display| Error::Other(format!("cannot draw {}: {error}", path.display()));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(&error))?;
        let root = root.titled(title, ("sans-serif", 20)).map_err(|error| failed(&error))?;
        for (area, panel) in root.split_evenly((1, 2)).iter().zip(&PANELS) {
            draw_panel(area, panel, epochs, last.epoch).map_err(|error| failed(&error))?;
        }
        root.present().map_err(|error| failed(&error))?;
    }
    crate::checkpoint::replace_file(path, svg.as_bytes())?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_panel(
    area: &Area,
    panel: &Panel,
    epochs: &[EpochRecord],
    last: u32,
) -> Result<(), Box<dyn std::error::Error>> {
    let highest = panel
        .curves
        .iter()
        .flat_map(|curve| epochs.iter().filter_map(curve.value))
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let top = if highest > 0.0 { 1.05 * highest } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..f64::from(last), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .x_labels(1 + last.min(10) as usize)
        .x_label_formatter(&|epoch| format!("{epoch:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for curve in &panel.curves {
        let points: Vec<(f64, f64)> = epochs
            .iter()
            .filter_map(|epoch| Some((f64::from(epoch.epoch), (curve.value)(epoch)?)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        let color = curve.color;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
            .label(curve.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
